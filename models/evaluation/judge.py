"""Ask a judge about the answers to a benchmark: a chat endpoint, temperature 0, every verdict kept.

A reply that is no verdict is asked about once more, in the same conversation and at the same temperature: the
judge is reminded of the form. What is no verdict then, and what the endpoint failed at, is a failure of the
judge: it leaves the answer without a verdict, and the next start asks about it again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.benchmarks.judging import Judging, encodable, get_judging
from models.benchmarks.scorer import Row
from models.chat import ChatClient
from models.config import JudgeConfig
from models.errors import EngineError, ScoringError
from models.evaluation.verdicts import Case, Verdict, VerdictStore

log = logging.getLogger(__name__)

_NUM_ASKED = 2
_MAX_QUOTED = 120


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of asking about one answer: a verdict, or None and why the judge failed."""

    verdict: str | None
    reply: str = ""
    reason: str = ""
    is_cached: bool = False


class Judge:
    """The judge of one benchmark: a model at an endpoint, in the words of the benchmark's module."""

    def __init__(self, benchmark: str, config: JudgeConfig, folder: Path, *, api_key: str = "") -> None:
        """``folder`` keeps the verdicts. Raises ConfigError for a benchmark that uses no judge."""
        self.judging: Judging = get_judging(benchmark)
        self.config = config
        self.version = self.judging.version_of(config.served_model)
        self._benchmark = benchmark
        self._api_key = api_key
        self._kept = VerdictStore(folder)

    def judge(
        self,
        answers: Sequence[tuple[Row, str]],
        *,
        on_judged: Callable[[Judgement], None] = lambda judgement: None,
    ) -> list[Judgement]:
        """A judgement on every answer (row and text), in order; equal ones are asked about once.

        ``on_judged`` hears of each new judgement as it comes, and may raise to stop asking.
        """
        cases = [self._case(row, answer) for row, answer in answers]
        found: dict[str, Judgement] = {}
        waiting: dict[str, tuple[Case, Row, str]] = {}
        for case, (row, answer) in zip(cases, answers, strict=True):
            kept = self._kept.read(case)
            if kept is None:
                waiting[case.key] = (case, row, answer)
            else:
                found[case.key] = Judgement(kept.verdict, kept.reply, is_cached=True)
        log.info("judge %s: %d answers, %d to ask about", self.version, len(cases), len(waiting))
        if waiting:
            self._ask_all(waiting, found, on_judged)
        return [found[case.key] for case in cases]

    def _case(self, row: Row, answer: str) -> Case:
        return Case(
            benchmark=self._benchmark,
            question=encodable(self.judging.question(row)),
            gold=encodable(self.judging.gold(row)),
            answer=encodable(answer),
            judge_version=self.version,
        )

    def _ask_all(
        self,
        waiting: Mapping[str, tuple[Case, Row, str]],
        found: dict[str, Judgement],
        on_judged: Callable[[Judgement], None],
    ) -> None:
        client = self._connect()
        pool = ThreadPoolExecutor(max_workers=self.config.num_connections, thread_name_prefix="judge")
        try:
            futures = {pool.submit(self._ask, client, *each): key for key, each in waiting.items()}
            for future in as_completed(futures):
                judgement = found[futures[future]] = future.result()
                on_judged(judgement)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

    def _connect(self) -> ChatClient:
        config = self.config
        return ChatClient(
            config.endpoint,
            api_key=self._api_key,
            timeout_seconds=config.timeout_seconds,
            max_tries=config.max_tries,
            backoff_seconds=config.backoff_seconds,
            max_connections=config.num_connections,
        )

    def _ask(self, client: ChatClient, case: Case, row: Row, answer: str) -> Judgement:
        """One answer's judgement; a verdict is on disk before it is returned."""
        try:
            verdict, reply = self._verdict(client, row, answer)
        except (EngineError, ScoringError) as error:
            who = f"judge {self.config.served_model} (version {self.version})"
            return Judgement(None, reason=f"{who}: {error}")
        model = self.config.served_model
        self._kept.write(Verdict(case=case, judge_model=model, verdict=verdict, reply=reply))
        return Judgement(verdict, reply)

    def _verdict(self, client: ChatClient, row: Row, answer: str) -> tuple[str, str]:
        messages = [_message("user", self.judging.prompt(row, answer))]
        reply = ""
        for _ in range(_NUM_ASKED):
            completion = client.complete(self._body(messages))
            reply = completion.text
            # What was cut off may have gone on to say something else.
            is_whole = completion.finish_reason != "length"
            verdict = self.judging.read(row, _without_thoughts(reply)) if is_whole else None
            if verdict is not None:
                return verdict, reply
            messages += [_message("assistant", reply), _message("user", self.judging.reminder)]
        raise ScoringError(
            f"it replied {reply[:_MAX_QUOTED]!r}, which is no verdict, {_NUM_ASKED} times asked"
        )

    def _body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        return {
            "model": self.config.served_model,
            "messages": list(messages),
            "max_tokens": self.config.max_reply_tokens,
            "temperature": 0.0,
        }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _without_thoughts(reply: str) -> str:
    return reply.rpartition("</think>")[2]
