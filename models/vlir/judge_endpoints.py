"""The judges that a configuration names; only one at an endpoint needs anything but this machine."""

import os
from typing import Literal

from models.config import EngineConfig
from models.http_engine import HTTPEngine
from models.usage import Usage
from models.vlir.judges import EngineJudge, Judge, Nobody
from models.vlir.local_judges import CoherenceJudge, SemanticUnitJudge
from models.vlir_config import FilterJudge

Which = Literal["semantic_unit", "coherence"]


class EndpointJudge(EngineJudge):
    """A model at a chat endpoint."""

    def __init__(self, config: FilterJudge, *, api_key: str = "") -> None:
        self._http = HTTPEngine(
            EngineConfig(
                kind="http",
                endpoint=config.endpoint,
                served_model=config.served_model,
                max_num_seqs=config.num_connections,
                timeout_seconds=config.timeout_seconds,
                max_tries=config.max_tries,
                backoff_seconds=config.backoff_seconds,
                # Sends nothing but what every endpoint takes; a judge never goes on with a reply.
                continuation="user_turn",
            ),
            api_key=api_key,
        )
        super().__init__(
            self._http,
            name=config.served_model,
            max_reply_tokens=config.max_reply_tokens,
            max_in_flight=self._http.max_in_flight,
        )

    @property
    def usage(self) -> Usage:
        """What the endpoint was asked for."""
        return self._http.usage


def open_judge(config: FilterJudge, which: Which, *, teacher_endpoint: str = "") -> Judge:
    """The judge of crops or of reasoning. An endpoint's key is ``VLM_R3_JUDGE_API_KEY``, or the teacher's
    (``VLM_R3_API_KEY``) where the teacher judges, too.
    """
    if config.kind == "http":
        key = os.environ.get("VLM_R3_JUDGE_API_KEY", "")
        if not key and config.endpoint == teacher_endpoint:
            key = os.environ.get("VLM_R3_API_KEY", "")
        return EndpointJudge(config, api_key=key)
    if config.kind == "none":
        return Nobody()
    return SemanticUnitJudge() if which == "semantic_unit" else CoherenceJudge()
