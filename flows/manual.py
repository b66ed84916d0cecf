"""What `vlm-r3 --help` says around the list of commands."""

DESCRIPTION = """\
Vision-language models that look again: make data, train, measure, promote, and use them.

A run is a preset (infra/runs/NAME.yaml, or a file of yours) and what --set changes in it. Every stage makes
what it needs and takes from the cache what has not changed, so any command may be the first one."""
MANUAL = """\
examples:
  vlm-r3 doctor                                       what is this machine good for?
  vlm-r3 run --preset tiny                            the whole pipeline on the embedded model
  vlm-r3 sft --preset tiny --set sft.num_epochs=3     one stage, and what it needs
  vlm-r3 ask picture.png "what does the sign say?"    the champion answers, and shows where it looked
  vlm-r3 serve models:/vlm-r3@champion                the same over HTTP, for OpenAI's clients
  vlm-r3 evaluate --benchmark mme --data FOLDER --endpoint http://host:8000/v1
  vlm-r3 table                                        measured beside published
  vlm-r3 services up                                  a team server: PostgreSQL, S3, Prefect, MLflow
  vlm-r3 COMMAND --help                               every option of a command

exit codes:
  0 done    1 the run failed    2 bad usage or configuration    3 a gate said no    130 interrupted

environment:
  VLM_R3_WORK_DIR        where everything is kept (.vlm-r3), as --work-dir
  VLM_R3_ARTIFACTS       the artifact store: file:///folder or s3://bucket/prefix
  VLM_R3_BENCHMARKS      a place with one folder per published benchmark
  VLM_R3_API_KEY         key of a chat endpoint; VLM_R3_JUDGE_API_KEY of a judge,
                         VLM_R3_SERVE_API_KEY what clients of `serve` must send
  MLFLOW_TRACKING_URI, PREFECT_API_URL, AWS_ENDPOINT_URL and credentials as those libraries read them

Tab completion: eval "$(vlm-r3 completion bash)", or zsh."""
