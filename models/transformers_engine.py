"""The reference engine: the policy's own forward pass, one token at a time, without a key-value cache.

It shares no sampling or caching code with vLLM, which is what makes it a reference; it is for tests and for
machines without vLLM. Same banned tokens, same stop rules, log-probs at the sampling temperature.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import EngineConfig
from models.encoding import Encoded, TextSoFar
from models.errors import EncodingError, EngineError
from models.policy import Policy, collate
from models.shared_weights import SharedWeights
from models.trajectory import Draft, Finish, GenerationRequest, Piece, SampledSpan


@dataclass(slots=True)
class _Live:
    """A request in flight: its sequence so far and what was sampled onto it."""

    request: GenerationRequest
    encoded: Encoded
    generator: torch.Generator
    num_given: int
    text: TextSoFar
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def append(self, token: int, logprob: float) -> None:
        """Add a sampled token; as text it takes the next rotary position in all three dimensions."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        following = self.encoded.positions.max() + 1
        self.encoded = replace(
            self.encoded,
            ids=np.append(self.encoded.ids, token),
            sampled=np.append(self.encoded.sampled, True),
            engine_logprobs=np.append(self.encoded.engine_logprobs, np.float32(logprob)),
            versions=np.append(self.encoded.versions, np.int32(0)),
            positions=np.append(self.encoded.positions, np.full((3, 1), following), axis=1),
        )


class TransformersEngine:
    """A :class:`models.engine.Engine` on the policy itself: it always samples from the present weights.

    ``version`` is the policy version that spans are marked with; whoever trains the policy sets it.
    """

    def __init__(self, policy: Policy, config: EngineConfig) -> None:
        self.policy = policy
        self.encoder = policy.encoder
        self.version = 0
        self._config = config
        self._live: dict[str, _Live] = {}
        self._done: list[Piece] = []
        self._drafts: list[Draft] = []

    @property
    def is_busy(self) -> bool:
        """True when the next step makes a forward pass."""
        return bool(self._live)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its id must not be in flight."""
        if request.request_id in self._live:
            raise EngineError(f"Request {request.request_id!r} is already in flight.")
        try:
            encoded = self.encoder.expand(self.encoder.collapse(request.prompt, request.spans))
        except EncodingError as error:
            self._done.append(Piece(request.request_id, self._span((), ()), "error", str(error)))
            return
        if len(encoded) >= self._config.max_model_len:
            self._done.append(Piece(request.request_id, self._span((), ()), "context"))
            return
        generator = torch.Generator()
        if request.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.seed)
        self._live[request.request_id] = _Live(
            request, encoded, generator, len(encoded), TextSoFar(self.encoder)
        )

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """Sample one token for every request in flight; the pieces that are finished by it."""
        pieces, self._done = self._done, []
        self._drafts = []
        batch = list(self._live.values())[: self._config.max_num_seqs]
        if batch:
            for live, logits in zip(batch, self._next_logits(batch), strict=True):
                live.append(*_sample(logits, live.request.temperature, live.generator))
                finish = self._finish(live)
                if finish is not None:
                    del self._live[live.request.request_id]
                    span = self._span(tuple(live.ids), tuple(live.logprobs))
                    pieces.append(Piece(live.request.request_id, span, finish, context_tokens=live.num_given))
                elif live.request.shows_drafts and (added := live.text.grow(live.ids)):
                    self._drafts.append(Draft(live.request.request_id, added))
        return pieces

    def drafts(self) -> list[Draft]:
        """The requests with ``shows_drafts`` whose text grew in the last step."""
        return self._drafts

    def abort(self, request_id: str) -> None:
        """Forget a request in flight; unknown ids are ignored."""
        self._live.pop(request_id, None)

    def close(self) -> None:
        """Forget everything in flight."""
        self._live.clear()
        self._done.clear()

    def _next_logits(self, batch: list[_Live]) -> Tensor:
        """Logits (requests, V) of the next token, before the temperature."""
        collated = collate([live.encoded for live in batch], self.policy)
        length = collated.ids.shape[1]
        last = [row * length + len(live.encoded) - 1 for row, live in enumerate(batch)]
        hidden = self.policy.hidden_states(collated, torch.tensor(last, device=collated.ids.device))
        return self.policy.logits(hidden, temperature=1.0).cpu()

    def _finish(self, live: _Live) -> Finish | None:
        """Why the request is over after its last token; None when it goes on."""
        if live.ids[-1] in self.encoder.end_ids:
            return "end"
        text = self.encoder.decode(live.ids)
        if any(stop in text for stop in live.request.stops):
            return "stop"
        if len(live.ids) >= live.request.max_new_tokens:
            return "length"
        return "context" if len(live.encoded) >= self._config.max_model_len else None

    def _span(self, ids: tuple[int, ...], logprobs: tuple[float, ...]) -> SampledSpan:
        return SampledSpan(self.encoder.decode(ids), ids, logprobs, self.version)


def _sample(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[int, float]:
    """A token from logits (V,) and its log-prob at that temperature; 0 takes the most probable token.

    A greedy token's log-prob is that of the untempered distribution, as vLLM reports it.
    """
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = int(logprobs.argmax())
    else:
        token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
    return token, float(logprobs[token])


class FollowingEngine(TransformersEngine):
    """The reference engine away from the policy that is trained, which it follows: a policy of its own, whose
    weights come through memory that both share.

    The calls are those of vLLM's weight transfer. ``salt`` has no meaning here: nothing outlives an update.
    """

    def __init__(self, policy: Policy, config: EngineConfig, descriptor: int) -> None:
        super().__init__(policy, config)
        self.salt = ""
        self._memory = SharedWeights(descriptor)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)

    def receive(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Take the weights that lie in the memory; other calls have nothing to do here."""
        if call != "update_weights":
            return
        mine = dict(self.policy.weights())
        for name, tensor in self._memory.read(arguments["update_info"]["places"]):
            mine[name].copy_(tensor)

    def begin_version(self, version: int) -> None:
        """Forget the features that older weights made."""
        self.policy.look_afresh()
        self.version = version
