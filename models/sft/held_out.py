"""How well the policy looks again while it is fine-tuned: greedy answers to held-out questions.

The policy itself samples, by the reference engine: nothing has to follow its weights, and nothing that the
training uses is drawn, so a run with these checks takes the same steps as one without.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from models import distributed
from models.answers import matches
from models.config import EngineConfig, Look, SFTConfig
from models.distributed import World
from models.encoding import Encoded
from models.errors import TrainingError
from models.policy import Policy, collate
from models.protocol import extract_answer
from models.records import Question, read_questions, read_records
from models.rollout import Asked, Episode, Loop
from models.rundir import metric_part
from models.shuffling import endless_shuffle
from models.trajectory import Trajectory
from models.transformers_engine import TransformersEngine


def load_questions(
    questions_path: str, records_path: str, *, config: SFTConfig, seed: int, world: World
) -> list[Question]:
    """This rank's share of ``config.accuracy_questions`` held-out questions, the same in every check.

    They come from a file of questions; without one they are those of the validation records. Raises
    TrainingError when there is neither.
    """
    if not config.accuracy_questions:
        return []
    if not (questions_path or records_path):
        raise TrainingError(
            f"sft.accuracy_questions is {config.accuracy_questions}, but the data hold no validation "
            "questions and no validation records. Set it to 0, or build data with a validation split."
        )
    found = (
        read_questions(Path(questions_path))
        if questions_path
        else [record.question for record in read_records(Path(records_path))]
    )
    unique = list({question.id: question for question in found}.values())
    if not unique:
        raise TrainingError(
            f"sft.accuracy_questions is {config.accuracy_questions}, and {questions_path or records_path} "
            "holds no question. Set it to 0, or give it held-out questions."
        )
    count = min(config.accuracy_questions, len(unique))
    chosen = endless_shuffle(len(unique), start=0, count=count, seed=seed)
    return [unique[index] for index in chosen[world.rank :: world.size]]


def look_again_metrics(
    policy: Policy, questions: Sequence[Question], *, spare: Encoded, look: Look, config: SFTConfig
) -> dict[str, float]:
    """``sft/accuracy`` and what belongs to it, over the questions of all ranks; all ranks call it.

    ``spare`` is any sequence. A question whose attempt we broke counts for nothing but
    ``sft/unscored_share``.
    """
    trajectories = _answer_together(policy, questions, spare=spare, look=look, config=config)
    mine = [
        (question.kind, matches(extract_answer(one.sampled_text), question.answers), len(one.crops))
        for question, one in zip(questions, trajectories, strict=True)
        if not one.is_our_failure
    ]
    scored = [outcome for share in distributed.from_all_ranks(mine) for outcome in share]
    (num_asked,) = distributed.global_sums([len(questions)])
    metrics = {"sft/unscored_share": 1 - len(scored) / num_asked}
    if not scored:
        return metrics
    kinds: dict[str, list[bool]] = {}
    for kind, is_correct, _ in scored:
        kinds.setdefault(kind, []).append(is_correct)
    by_kind = {
        f"sft/accuracy/{metric_part(kind)}": sum(found) / len(found) for kind, found in kinds.items() if kind
    }
    return {
        **metrics,
        "sft/accuracy": sum(is_correct for _, is_correct, _ in scored) / len(scored),
        **dict(sorted(by_kind.items())),
        "sft/crops_per_question": sum(num_crops for *_, num_crops in scored) / len(scored),
    }


@torch.no_grad()
def _answer_together(
    policy: Policy, questions: Sequence[Question], *, spare: Encoded, look: Look, config: SFTConfig
) -> list[Trajectory]:
    """A greedy trajectory per question. ZeRO-3 gathers weights in every pass, so all ranks make equally many:
    one that has nothing in flight passes ``spare`` through."""
    settings = EngineConfig(
        kind="transformers",
        max_model_len=config.max_tokens,
        # Without a key-value cache a sampled token costs what its whole sequence costs.
        max_num_seqs=max(1, config.tokens_per_micro_batch * 8 // config.max_tokens),
    )
    engine = TransformersEngine(policy, settings)
    loop, finished = Loop(engine), dict[str, Trajectory]()
    for question in questions:
        loop.start(Episode(Asked.of(question, look), 0, look=look))
    idle_pass = collate([spare], policy)
    while any(distributed.from_all_ranks(bool(loop.live))):
        if not engine.is_busy:  # the output head is gathered too
            first = torch.zeros(1, dtype=torch.int64, device=policy.device)
            policy.logits(policy.hidden_states(idle_pass, first), temperature=1.0)
        for episode in loop.step():
            if episode.stop is not None:
                one = episode.trajectory()
                finished[one.question_id] = one
    return [finished[question.id] for question in questions]
