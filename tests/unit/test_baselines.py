"""Every model of Table 1 can be asked, with settings that load."""

import json
from pathlib import Path

import pytest
import yaml

from models.baselines import BASELINES_FILE, get_baseline, read_baselines
from models.errors import ConfigError
from models.presets import load_preset
from models.published_numbers import read_published
from models.run_config import DirectPrompt
from tasks.benchmark_request import baseline_place

NOWHERE = {"model": "", "endpoint": "", "served_model": ""}
OPEN = {"name": "a", "published": "A", "licence": "x", "repository": "a/b", "architecture": "C"}


def folder_of(architecture: str, path: Path) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return str(path)


def test_every_published_model_but_ours_is_a_baseline() -> None:
    published = [row.label for row in read_published().table(1).rows]
    assert sorted(baseline.published for baseline in read_baselines()) == sorted(set(published) - {"Ours 7B"})


@pytest.mark.parametrize("baseline", read_baselines(), ids=lambda baseline: baseline.name)
def test_its_settings_are_a_whole_preset(baseline, tmp_path: Path) -> None:
    where = dict(NOWHERE)
    if baseline.is_open:
        where |= {"endpoint": "http://h/v1", "served_model": "m"}
    preset = load_preset(baseline.preset, [*baseline.overrides(), *baseline_place(baseline, **where)])
    assert preset.engine.kind == "http"
    assert preset.look.max_sampled_tokens >= 2048
    assert all("." in key for key in baseline.settings)
    if baseline.is_open and not baseline.last_vllm:
        folder = folder_of(baseline.architecture, tmp_path)
        place = baseline_place(baseline, **{**NOWHERE, "model": folder})
        served = load_preset(baseline.preset, [*baseline.overrides(), *place])
        assert (served.engine.kind, served.model.path) == ("vllm-server", folder)


def test_closed_models_have_their_endpoint_and_its_restrictions() -> None:
    o1 = get_baseline("o1")
    preset = load_preset(o1.preset, [*o1.overrides(), *baseline_place(o1, **NOWHERE)])
    assert preset.engine.endpoint == "https://api.openai.com/v1"
    assert preset.engine.served_model == "o1"
    assert preset.engine.token_limit_field == "max_completion_tokens"
    assert preset.engine.omit == {"temperature", "stop", "seed"}
    assert preset.engine.continuation == "user_turn"
    elsewhere = baseline_place(
        o1, **{**NOWHERE, "endpoint": "http://proxy/v1", "served_model": "o1-2024-12-17"}
    )
    assert load_preset(o1.preset, [*o1.overrides(), *elsewhere]).engine.served_model == "o1-2024-12-17"


def test_who_answers_must_be_said(tmp_path: Path) -> None:
    qwen = get_baseline("qwen2.5-vl-7b")
    with pytest.raises(
        ConfigError, match=r"needs --model FOLDER with the weights of Qwen/Qwen2.5-VL-7B-Inst"
    ):
        baseline_place(qwen, **NOWHERE)
    with pytest.raises(ConfigError, match=r"gpt-4o has no weights"):
        baseline_place(get_baseline("gpt-4o"), **{**NOWHERE, "model": "/models/x"})


def test_a_folder_must_hold_the_model_and_vllm_must_run_it(tmp_path: Path) -> None:
    other = folder_of("LlavaNextForConditionalGeneration", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"holds LlavaNext.*is Qwen2_5_VLForConditionalGeneration"):
        get_baseline("qwen2.5-vl-7b").check_folder(other)
    mllama = folder_of("MllamaForConditionalGeneration", tmp_path / "cot")
    with pytest.raises(ConfigError, match=r"vLLM 0\.10\.2 was the last to run Mllama.*give its --endpoint"):
        get_baseline("llava-cot-11b").check_folder(mllama)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'qwen2.5-vl' is unknown\. Did you mean 'qwen2.5-vl-7b'"):
        get_baseline("qwen2.5-vl")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{**OPEN, "speed": 1}], "speed"),
        ([{**OPEN, "repository": ""}], "needs a repository (open) or an endpoint (closed)"),
        ([{**OPEN, "architecture": ""}], "a repository needs an architecture"),
        ([{**OPEN, "direct": {"template": "no mark"}}], "must have {question} once"),
        ([{**OPEN, "direct": {"answer": "last_word"}}], "answer_tag"),
        ([OPEN, OPEN], "a occur more than once"),
    ],
)
def test_a_registry_that_is_wrong_is_refused(entries: list[dict], says: str, tmp_path: Path) -> None:
    (tmp_path / "baselines.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(ConfigError) as error:
        read_baselines(tmp_path / "baselines.yaml")
    assert says in str(error.value)


def test_only_the_mark_is_replaced() -> None:
    prompt = DirectPrompt(template="Think. {question} {x}")
    assert prompt.ask(r"Put it in \boxed{}. {question}") == r"Think. Put it in \boxed{}. {question} {x}"


def test_the_documents_say_how_each_is_run() -> None:
    text = (BASELINES_FILE.parents[1] / "docs" / "baselines.md").read_text()
    for baseline in read_baselines():
        assert f"--baseline {baseline.name}" in text
