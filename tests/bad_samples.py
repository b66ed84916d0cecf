"""R-GRPO updates in which one sample, or the weights, come to something that is no number."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import distributed, training_state
from models.config import ObjectiveConfig, RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.errors import VLMR3Error
from models.policy import Policy, load_to_train
from models.rgrpo.objective import Totals
from models.rgrpo.update import Sample, update_policy
from tests.bad_gradients import nan_in_gradient_of
from tests.training_data import LOOK, records

BAD = "question-1#1"  # the sample with the fault, whatever it is
FAULTS = ("logprob", "infinite logprob", "loss", "gradient", "engine", "weights")


def refused(model_path: Path, zero_stage: int, fault: str, *, is_planted: bool = True) -> tuple[str, bool]:
    """What stops an update of two groups of two, dealt out to the ranks, and whether master weights and
    moments are then as they were. Unless ``is_planted`` nothing is wrong."""
    policy = load_to_train(model_path, _config(zero_stage))
    plant, spoil = _KINDS[fault]
    marked = policy.encoder.vocab_size - 1  # an id that no text has
    if fault == "logprob":
        with torch.no_grad():
            policy.model.get_input_embeddings().weight[marked] = torch.nan
    engine = distributed.initialise(policy, _config(zero_stage))
    before = dict(training_state.whole_state(engine))
    samples = list(_samples(policy))
    if is_planted:
        samples = [spoil(one, marked) if one.id == BAD else one for one in samples]
        plant(engine, marked)
    said = ""
    try:
        _update(engine, samples[distributed.rank() :: distributed.num_ranks()], samples[0].encoded)
    except VLMR3Error as error:
        said = str(error)
    after = dict(training_state.whole_state(engine))
    return said, all(_is_same(after[name], tensor) for name, tensor in before.items())


def _config(zero_stage: int) -> RGRPOConfig:
    return RGRPOConfig(
        precision="float32",
        zero_stage=zero_stage,
        gradient_checkpointing=zero_stage == 3,  # as large models are trained; the watch must see it too
        tokens_per_micro_batch=1024,
        max_mismatch_kl=1e9,  # no engine sampled these samples
        objective=ObjectiveConfig(aggregation="seq-mean-token-mean"),
    )


def _samples(policy: Policy) -> Iterator[Sample]:
    for record in records(2):
        for index, advantage in enumerate((1.0, -1.0)):
            first, *others = record.steps
            text = "I look. " * (index + 1) + first.text
            longer = replace(record, steps=(replace(first, text=text), *others))
            encoded = policy.encoder.encode_record(longer, LOOK)
            yield Sample(record.question.id, index, encoded, advantage)


def _update(engine: DeepSpeedEngine, samples: list[Sample], spare: Encoded) -> None:
    update_policy(
        engine,
        samples,
        spare=spare,
        totals=Totals(2, 4, 100, 24),
        config=_config(engine.zero_optimization_stage()),
        learning_rate=0.1,
    )


def _is_same(after: Tensor, before: Tensor) -> bool:
    return torch.equal(after.nan_to_num(), before.nan_to_num())


def _mark(sample: Sample, marked: int) -> Sample:
    """The sample with the marked id as input in the midst of what it wrote, but not as something sampled."""
    encoded, place = sample.encoded, int(sample.encoded.sampled.argmax()) + 3
    ids, sampled = encoded.ids.copy(), encoded.sampled.copy()
    ids[place], sampled[place] = marked, False
    return replace(sample, encoded=replace(encoded, ids=ids, sampled=sampled))


def _banned_token(sample: Sample, marked: int) -> Sample:
    """The marked id is banned: to have sampled it has a log-prob of minus infinity."""
    ids = sample.encoded.ids.copy()
    ids[int(sample.encoded.sampled.argmax()) + 3] = marked
    return replace(sample, encoded=replace(sample.encoded, ids=ids))


def _infinite_advantage(sample: Sample, marked: int) -> Sample:
    return replace(sample, advantage=np.inf)


def _engine_logprob(sample: Sample, marked: int) -> Sample:
    values = np.where(sample.encoded.sampled, np.nan, 0.0).astype(np.float32)
    return replace(sample, encoded=replace(sample.encoded, engine_logprobs=values))


def _as_it_is(sample: Sample, marked: int) -> Sample:
    return sample


def _nothing(engine: DeepSpeedEngine, marked: int) -> None: ...


def _in_weights(engine: DeepSpeedEngine, marked: int) -> None:
    nan_in_gradient_of(engine.module)


def _in_gradient_of_marked(engine: DeepSpeedEngine, marked: int) -> None:
    """The gradient of the last layer where the marked id stands; all log-probs stay sound."""
    policy: Policy = engine.module
    with distributed.gathered(engine):
        embedding = policy.model.get_input_embeddings().weight[marked].detach().clone()

    def plant(module: torch.nn.Module, _: object, inputs: dict[str, Tensor], output: object) -> None:
        # Of the tokens that the last layer goes on with, (1, N, 1); the marked one predicts a sampled one.
        everywhere = (inputs["inputs_embeds"] == embedding).all(dim=2, keepdim=True).flatten(0, 1)
        is_marked = everywhere[inputs["wanted"]][None]
        hidden: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        if is_marked.any():
            hidden.register_hook(lambda gradient: torch.where(is_marked, torch.nan, gradient))

    policy.model.model.language_model.register_forward_hook(plant, with_kwargs=True)


_Plant = Callable[[DeepSpeedEngine, int], None]
_Spoil = Callable[[Sample, int], Sample]
_KINDS: dict[str, tuple[_Plant, _Spoil]] = {
    "logprob": (_nothing, _mark),
    "infinite logprob": (_nothing, _banned_token),
    "loss": (_nothing, _infinite_advantage),
    "gradient": (_in_gradient_of_marked, _mark),
    "engine": (_nothing, _engine_logprob),
    "weights": (_in_weights, _as_it_is),
}
