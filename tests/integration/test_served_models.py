"""`vlm-r3 serve` of models that lie elsewhere: a registered version, and a prefix in S3."""

import asyncio
from pathlib import Path

import pytest
from openai import OpenAI

from models.config import EMBEDDED_MODEL
from models.tiny import phrases
from tasks.registry import promote_version, register
from tasks.settings import prepare
from tasks.stage import read_store
from tests.evidence_examples import POLICY
from tests.registry_examples import stored_evidence
from tests.s3_server import BUCKET, S3Server
from tests.serving_client import Served, served

pytestmark = [pytest.mark.integration]


def answer_of(server: Served) -> tuple[str, str]:
    """What OpenAI's client is told: where the model comes from, and what two and three are."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        (model,) = client.models.list().data
        messages = [
            {"role": "system", "content": phrases.BASE_SYSTEM_PROMPT},
            {"role": "user", "content": phrases.arithmetic_prompt(2, 3)},
        ]
        reply = client.chat.completions.create(model=model.id, messages=messages)
    return model.root, reply.choices[0].message.content


def test_the_champion_is_served(work_dir: Path, tmp_path: Path) -> None:
    prepare(work_dir)
    weights = read_store().publish(EMBEDDED_MODEL, stage="rgrpo", kind="model")
    version = asyncio.run(register.fn(weights, stored_evidence(tmp_path, weights)))
    assert asyncio.run(promote_version.fn(version, POLICY)).is_champion
    with served("models:/vlm-r3@champion", VLM_R3_WORK_DIR=str(work_dir)) as server:
        assert "models:/vlm-r3/1" in server.log.read_text()
        assert answer_of(server) == ("models:/vlm-r3@champion", "5")


def test_a_model_in_s3_is_served(s3: S3Server) -> None:
    s3.put_folder(EMBEDDED_MODEL, "served/model")
    uri = f"s3://{BUCKET}/served/model"
    with served(uri, "--set", "engine.kind=transformers", **s3.environment("reader")) as server:
        assert uri in server.log.read_text()
        assert answer_of(server) == (uri, "5")
