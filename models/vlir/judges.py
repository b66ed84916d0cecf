"""Judges of generated rationales: one small protocol, the paper's prompts, strict parsing (paper 3.1.2, B.2).

A judge answers a prompt with words. Only "yes" and "no" are verdicts; anything else is ``unclear``, counted,
and asked once more. A request that the judge fails at is no verdict: ``judge_failed``, for that prompt alone;
a judge that fails at everything is down, which is an error. Any :class:`models.engine.Engine` is a judge
through :class:`EngineJudge`; the judges of the drawn world, which need no model, are in
:mod:`models.vlir.local_judges`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

from models.answers import bare_word
from models.engine import Engine
from models.errors import RecordError, ScoringError
from models.region import Picture
from models.rollout import derive_seed
from models.trajectory import GenerationRequest, Piece, Prompt
from models.usage import Usage

WithoutVerdict = Literal["judge_failed", "not_judged"]
Answer = Literal["yes", "no", "unclear", WithoutVerdict]

# Listing 3 of the paper.
SEMANTIC_UNIT_PROMPT = (
    "You need to determine whether the content in a picture is a complete and semantically meaningful "
    "visual unit. Please look carefully at this cropped image and determine whether it contains a "
    "recognizable object, block of text, or specific part of a diagram. If it is recognizable, answer "
    "'yes'; if not, answer 'no'.\n"
    "Now output 'yes' or 'no' directly."
)
# Listing 4 of the paper, before and after the question, the gold answer and the reasoning.
_COHERENCE_OPENING = (
    "You need to make an in-depth assessment of this reasoning process. First, determine whether its "
    "logic is rigorous and whether each step of reasoning leads naturally and smoothly to the next; "
    "second, check whether the reasoning process progresses gradually towards arriving at the final "
    "answer; and lastly, check whether there is any false information or repetitive redundancy in the "
    "text that is not relevant to the reasoning. If this textual reasoning meets the requirements in "
    "terms of logic, advancement and content streamlining, output 'yes'; whenever one of these is not "
    "met, output 'no'.\n"
)
_COHERENCE_CLOSING = "\nNow output 'yes' or 'no' directly."

_MAX_REPLY_TOKENS = 8
_MAX_IN_FLIGHT = 256
# A greedy judge would repeat an unclear answer for ever, so the second time it samples.
_RETRY_TEMPERATURE = 0.7
# So many failed requests without an answered one between them are no accident.
_DOWN_AFTER = 8
# Follows a reply that reached the limit of its tokens: it may have gone on to say something else.
_CUT_OFF = " [cut off]"


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why there are no words: the judge failed at this request, or nobody judges."""

    answer: WithoutVerdict
    reason: str


class Judge(Protocol):
    """Something that answers prompts with words, many at a time."""

    @property
    def name(self) -> str:
        """Who judged, for the manifest and the evidence."""

    @property
    def usage(self) -> Usage:
        """What was asked of an endpoint."""

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> Sequence[str | NoReply]:
        """One reply per prompt, in order. ``attempt`` is 0, then 1 for those whose reply was unclear.

        Raises ScoringError when the judge is down: a failure is never a verdict.
        """

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's verdict, its last words or why there are none, and how often it had to be asked."""

    answer: Answer
    reply: str
    num_asked: int


class EngineJudge:
    """Any engine as a judge: greedy at first, sampled when asked again. Used by one thread at a time."""

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        seed: int = 0,
        max_reply_tokens: int = _MAX_REPLY_TOKENS,
        max_in_flight: int = _MAX_IN_FLIGHT,
    ) -> None:
        self._engine = engine
        self._name = name
        self._seed = seed
        self._max_reply_tokens = max_reply_tokens
        self._max_in_flight = max_in_flight
        self._num_failed_in_a_row = 0

    @property
    def name(self) -> str:
        """Who judged."""
        return self._name

    @property
    def usage(self) -> Usage:
        """Nothing: an engine of our own charges nothing."""
        return Usage()

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> list[str | NoReply]:
        """One reply per prompt, many in flight together; a failed request has none.

        Raises ScoringError when request after request fails.
        """
        replies: dict[str, str | NoReply] = {}
        ids = [f"{self._name}/{attempt}/{index}" for index in range(len(prompts))]
        waiting = zip(ids, prompts, strict=True)
        num_live = 0
        while len(replies) < len(ids):
            for request_id, prompt in islice(waiting, self._max_in_flight - num_live):
                self._engine.submit(self._request(request_id, prompt, attempt))
                num_live += 1
            for piece in self._engine.step():
                num_live -= 1
                replies[piece.request_id] = self._read(piece)
        return [replies[request_id] for request_id in ids]

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _request(self, request_id: str, prompt: Prompt, attempt: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            spans=(),
            stops=(),
            max_new_tokens=self._max_reply_tokens,
            temperature=_RETRY_TEMPERATURE if attempt else 0.0,
            seed=derive_seed(self._seed, request_id, attempt),
        )

    def _read(self, piece: Piece) -> str | NoReply:
        if piece.finish == "error":
            self._num_failed_in_a_row += 1
            if self._num_failed_in_a_row >= _DOWN_AFTER:
                raise ScoringError(
                    f"Judge {self._name!r} failed at {self._num_failed_in_a_row} requests in a row, the "
                    f"last: {piece.error}. No verdict was recorded; run the stage again when it answers."
                )
            return NoReply("judge_failed", piece.error)
        self._num_failed_in_a_row = 0
        # A model that thinks first says its verdict after that.
        words = piece.span.text.rpartition("</think>")[2]
        return words + _CUT_OFF if piece.finish in ("length", "context") else words


class Nobody:
    """In the place of a judge: nothing is judged, and nothing is rejected for that."""

    name = "nobody"
    usage = Usage()

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> list[str | NoReply]:
        """No reply to any prompt."""
        return [NoReply("not_judged", "the configuration names no judge")] * len(prompts)

    def close(self) -> None:
        """Nothing is held."""


def semantic_unit_prompt(crop: Picture) -> Prompt:
    """Listing 3: is this crop one recognisable thing?"""
    return Prompt(text=SEMANTIC_UNIT_PROMPT, pictures=(crop,))


def coherence_prompt(question: str, answer: str, reasoning: str) -> Prompt:
    """Listing 4: does this reasoning hold together? Line breaks in question and answer become spaces."""
    one_line = [" ".join(text.split()) for text in (question, answer)]
    body = "\n".join([*one_line, reasoning])
    return Prompt(text=_COHERENCE_OPENING + body + _COHERENCE_CLOSING)


def read_coherence_prompt(text: str) -> tuple[str, str, str]:
    """(question, gold answer, reasoning) of a Listing 4 prompt. Raises RecordError for any other text."""
    inside = text.removeprefix(_COHERENCE_OPENING).removesuffix(_COHERENCE_CLOSING)
    parts = inside.split("\n", 2)
    if len(inside) != len(text) - len(_COHERENCE_OPENING) - len(_COHERENCE_CLOSING) or len(parts) != 3:
        raise RecordError(
            f"A coherence judge was asked {text[:80]!r}, which is not the prompt of Listing 4. "
            "Build it with coherence_prompt."
        )
    return parts[0], parts[1], parts[2]


def parse_verdict(reply: str) -> Answer:
    """``yes`` or ``no`` when the reply is that word alone; case, quotes and a full stop do not matter."""
    word = bare_word(reply).casefold()
    return "yes" if word == "yes" else "no" if word == "no" else "unclear"


def judge(judge: Judge, prompts: Sequence[Prompt]) -> list[Judgement]:
    """A judgement for every prompt; those answered unclearly are asked once more.

    Raises ScoringError when the judge is down or returns another number of replies.
    """
    found = [_judgement(reply, 1) for reply in _replies(judge, prompts, attempt=0)]
    unclear = [index for index, judgement in enumerate(found) if judgement.answer == "unclear"]
    again = _replies(judge, [prompts[index] for index in unclear], attempt=1)
    for index, reply in zip(unclear, again, strict=True):
        found[index] = _judgement(reply, 2)
    return found


def _judgement(reply: str | NoReply, num_asked: int) -> Judgement:
    if isinstance(reply, NoReply):
        return Judgement(reply.answer, reply.reason, num_asked)
    return Judgement(parse_verdict(reply), reply, num_asked)


def _replies(judge: Judge, prompts: Sequence[Prompt], *, attempt: int) -> Sequence[str | NoReply]:
    if not prompts:
        return []
    replies = judge.ask(prompts, attempt=attempt)
    if len(replies) != len(prompts):
        raise ScoringError(f"Judge {judge.name!r} gave {len(replies)} replies to {len(prompts)} prompts.")
    return replies
