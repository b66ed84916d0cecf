"""The preflight's canary: an engine gets other weights, and what it then writes must show just them.

What older weights made may survive in a cache of prefixes or of pictures, or in a layer that the update did
not reach, such as an output head that is tied to the embeddings.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from models import distributed
from models.check import Check
from models.config import Look
from models.distributed import DeepSpeedEngine
from models.policy import Policy
from models.records import Question
from models.rgrpo.mismatch import measure_mismatch
from models.rgrpo.samplers import Sampler
from models.rollout import derive_seed
from models.run_config import RGRPORun
from models.trajectory import SampledSpan

# Norm weights, and the rows of embeddings and output head, times 1 + this times a standard normal: enough to
# change every log-prob, not to overflow.
_NOISE = 0.5
# Engine from trainer under such weights, k3: rounding to bfloat16 costs less, a layer of old weights more.
_FROM_TRAINER = 0.1
_CANARY_TOKENS = 48
# Largest difference of two log-probs (nats) that are the same computation done twice.
_SAME = {"float32": 1e-4, "bfloat16": 0.05}
# The same of two programs that see the same picture; in bfloat16 they may also come to write another text.
_ALIKE = {"float32": 1e-4, "bfloat16": 0.5}


def check_caches(
    engine: DeepSpeedEngine,
    sampler: Sampler,
    question: Question,
    config: RGRPORun,
) -> Check:
    """Whether anything that old weights made is left when the engine gets new ones.

    The language model's weights and the tower's are changed one after the other. A question that the engine
    knows must then be answered otherwise than before, and just as one that no cache holds anything of. The
    trainer with the same weights must agree with what is sampled then, where no rank has slices of it only.
    Once the policy's weights are back it must be answered as before.
    """
    name, rule = "caches", "new weights answer a known question as they answer a new one, and as the trainer"
    if not sampler.has_weights:
        return Check(name=name, value="none: it samples from the policy itself", rule=rule, passed=True)
    policy: Policy = engine.module
    limit = _SAME[config.engine.dtype]
    wrong, found = [], []
    with distributed.gathered(engine), sampler.looking_itself():
        before = _first_turn(sampler, question, config.look)
        for part, is_part in (("language model", _is_language), ("vision tower", _is_tower)):
            weights = _perturbed(policy.weights(), is_part)
            sampler.update_weights(weights, version=sampler.version)
            known = _first_turn(sampler, question, config.look)
            new = _first_turn(sampler, question, config.look, salt=f"canary {part}")
            moved, stale = new.distance(before), known.distance_of_same(new)
            found.append(f"{part}: moved by {_nats(moved)}, known from new by {_nats(stale)}")
            if stale > limit or (moved <= limit and new.ids == before.ids):
                wrong.append(part)
        sampler.update_weights(policy.weights(), version=sampler.version)
        restored = _first_turn(sampler, question, config.look).distance_of_same(before)
        sampler.update_weights(policy.weights(), version=sampler.version)  # empties the caches
    found.append(f"put back: {_nats(restored)}")
    wrong += ["put back"] if restored > limit else []
    if config.rgrpo.zero_stage < 3:
        gap = _from_trainer(engine, sampler, question, config)
        found.append(f"from the trainer: {gap:.2g} nats per token")
        wrong += ["trainer"] if gap > _FROM_TRAINER else []
    everywhere = sorted({part for parts in distributed.from_all_ranks(wrong) for part in parts})
    if everywhere:
        found.append(f"wrong: {', '.join(everywhere)}")
    return Check(name=name, value="; ".join(found), rule=rule, passed=not everywhere)


def _from_trainer(engine: DeepSpeedEngine, sampler: Sampler, question: Question, config: RGRPORun) -> float:
    """KL(engine || trainer), k3, nats per token, of a sampled first turn of each rank, while both have the
    same perturbed language model; NaN where nothing was sampled. Leaves the engine with the policy's weights.
    """
    policy: Policy = engine.module
    sampler.update_weights(_perturbed(policy.weights(), _is_language), version=sampler.version)
    (trajectory,) = sampler.roll_out(
        [question],
        look=_short(config.look),
        temperature=config.rgrpo.temperature,
        seed=derive_seed(config.seed, "canary", 0),
    )
    sampler.rest()
    encoded = policy.encoder.encode(trajectory)
    with _perturbed_in_place(policy, _is_language):
        scored = [encoded] if trajectory.num_sampled_tokens else []
        found = measure_mismatch(engine, scored, config.rgrpo, spare=encoded)
    sampler.update_weights(policy.weights(), version=sampler.version)
    return found.kl


@contextmanager
def _perturbed_in_place(policy: Policy, is_part: Callable[[str], bool]) -> Iterator[None]:
    kept = []
    with torch.no_grad():
        for (_, own), (_, other) in zip(policy.weights(), _perturbed(policy.weights(), is_part), strict=True):
            if own.data_ptr() != other.data_ptr():
                kept.append((own, own.clone()))
                own.copy_(other)
    try:
        yield
    finally:
        with torch.no_grad():
            for own, before in kept:
                own.copy_(before)


def check_towers(sampler: Sampler, question: Question, config: RGRPORun) -> Check:
    """Whether the engine's own tower sees what the trainer's does. The engine is given the trainer's
    features, so a fault in these is no mismatch of the two.

    On one question, by its greedy first turn: k3 over it, and the largest difference of a token, for most of
    its tokens are certain whatever is seen. The worst rank counts.
    """
    limit = config.rgrpo.max_mismatch_kl
    is_exact = config.engine.dtype == config.rgrpo.precision == "float32"
    largest = _ALIKE["float32" if is_exact else "bfloat16"]
    given = _first_turn(sampler, question, config.look)
    with sampler.looking_itself():
        own = _first_turn(sampler, question, config.look)
    gap = distributed.global_max(given.mismatch(own))
    far = distributed.global_max(given.distance_of_same(own) if is_exact else given.distance(own))
    return Check(
        name="vision towers",
        value=f"{gap:.3g} nats per token, {_nats(far)} at most",
        rule=f"the engine's own tower and the trainer's give log-probs that differ by at most {limit:g} "
        f"(k3), and none by more than {largest:g} nats",
        passed=gap <= limit and far <= largest,
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """A greedy first turn: ids, and their log-probs in nats."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def distance(self, other: "_Turn") -> float:
        """The largest difference of two log-probs while both wrote the same; infinite when they never did."""
        return max(map(abs, self._gaps(other)), default=float("inf"))

    def distance_of_same(self, other: "_Turn") -> float:
        """The same for turns that must have been written alike; infinite when their texts differ."""
        return self.distance(other) if self.ids == other.ids else float("inf")

    def mismatch(self, other: "_Turn") -> float:
        """The mean k3 of those log-probs, nats; infinite when both never wrote the same."""
        gaps = self._gaps(other)
        return sum(math.expm1(gap) - gap for gap in gaps) / len(gaps) if gaps else float("inf")

    def _gaps(self, other: "_Turn") -> list[float]:
        both = zip(self.ids, other.ids, self.logprobs, other.logprobs, strict=False)
        return [a - b for *_, a, b in takewhile(lambda one: one[0] == one[1], both)]


def _nats(distance: float) -> str:
    return f"{distance:.2g} nats" if math.isfinite(distance) else "another text"


def _first_turn(sampler: Sampler, question: Question, rules: Look, *, salt: str = "") -> _Turn:
    """With a ``salt`` no cache knows the question."""
    (trajectory,) = sampler.roll_out([question], look=_short(rules), salt=salt)
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    return _Turn(
        tuple(token for span in spans for token in span.token_ids or ()),
        tuple(value for span in spans for value in span.logprobs or ()),
    )


def _short(rules: Look) -> Look:
    return rules.model_copy(
        update={"max_sampled_tokens": min(_CANARY_TOKENS, rules.max_sampled_tokens), "max_turns": 1}
    )


def _is_tower(name: str) -> bool:
    return ".visual." in f".{name}"


def _is_language(name: str) -> bool:
    return not _is_tower(name)


def _perturbed(
    weights: Iterable[tuple[str, Tensor]], is_chosen: Callable[[str], bool]
) -> Iterator[tuple[str, Tensor]]:
    """The same weights with noise on the norms of a part, which act on all that passes through it, and on
    what is read from and written to the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights:
        is_norm = tensor.ndim == 1 and ("norm" in name or "ln_" in name)
        is_vocabulary = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        if is_chosen(name) and (is_norm or is_vocabulary):
            noise = torch.randn(tensor.shape[:1], generator=generator).to(tensor.device)
            scale = 1 + _NOISE * noise.reshape(-1, *[1] * (tensor.ndim - 1))
            yield name, (tensor * scale).to(tensor.dtype)
        else:
            yield name, tensor
