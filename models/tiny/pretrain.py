"""Make the tiny base model from nothing: ``python -m models.tiny.pretrain OUT_DIR``.

Three stages. Warm-up: the vision tower learns from dense labels (:mod:`models.tiny.warmup`). Binding: with
the tower frozen, the language model learns to locate the card of a colour. Joint: everything learns the base
tasks (:mod:`models.tiny.lessons`), the tower at a lower rate. Attention supervision (:mod:`models.tiny.gaze`)
helps in the last two. Work is counted in steps, never in seconds, so a recipe and a seed give the same model
again.

``python -m models.tiny.pretrain --score DIR`` measures a base again.
"""

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models._compat import declare_torchvision_operators

declare_torchvision_operators()

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402

from models.tiny import world  # noqa: E402
from models.tiny.architecture import build_model, untie  # noqa: E402
from models.tiny.batches import collate, forward_hidden  # noqa: E402
from models.tiny.checkpoint import save_base, write_provenance  # noqa: E402
from models.tiny.gaze import GazeRecorder  # noqa: E402
from models.tiny.lessons import Encoder, Lesson, Sight, Turn, sample_lesson  # noqa: E402
from models.tiny.pictures import encode_pictures  # noqa: E402
from models.tiny.scoring import score_base  # noqa: E402
from models.tiny.tokenizer import build_tokenizer  # noqa: E402
from models.tiny.warmup import DenseHeads, Words, warmup_loss  # noqa: E402

logger = logging.getLogger(__name__)

_LOG_EVERY = 100  # steps
_LABEL_BUCKET = 128  # label positions are padded to a multiple: bf16 compiles one kernel per shape on a CPU
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Stage:
    """One stage of lessons."""

    steps: int
    batch_size: int
    turns: dict[Turn, float]
    lr: float
    tower_lr_factor: float  # of lr; 0 freezes the tower
    gaze_weight: float
    max_tokens: int


_BINDING = Stage(
    steps=500,  # measured: the loss is below 0.01 after 400
    batch_size=16,
    turns={"locate": 1.0},
    lr=2e-3,
    tower_lr_factor=0.0,
    gaze_weight=0.3,
    max_tokens=144,
)
_JOINT = Stage(
    steps=2000,
    batch_size=8,
    turns={"locate": 0.3, "read_crop": 0.5, "read": 0.02, "add": 0.02, "where": 0.08, "arithmetic": 0.08},
    lr=1.5e-3,
    tower_lr_factor=0.3,
    gaze_weight=0.3,
    max_tokens=160,
)
_POLISH = replace(
    _JOINT,
    steps=1800,
    turns={
        "locate": 0.08,
        "read_crop": 0.14,
        "read": 0.02,
        "add": 0.02,
        "where": 0.06,
        "arithmetic": 0.06,
        "prose_locate": 0.25,
        "prose_read": 0.2,
        "prose_where": 0.09,
        "prose_sum": 0.08,
    },
    lr=1e-3,
)


@dataclass(frozen=True)
class Recipe:
    """How a base is made. Numbers are measurements on two CPU cores unless a comment says otherwise."""

    seed: int = 0
    warmup_steps: int = 1200
    warmup_views: int = 16
    warmup_pages: int = 12
    warmup_lr: float = 3e-3
    binding: Stage = _BINDING
    joint: Stage = _JOINT
    polish: Stage = _POLISH


class SightPool:
    """Training scenes, drawn once and reused a few times: drawing costs more than a lesson's forward."""

    def __init__(self, rng: np.random.Generator, *, size: int = 256) -> None:
        self._rng = rng
        self._sights = [Sight.of(world.sample_scene(rng, "train")) for _ in range(size)]

    def draw(self, num: int, *, num_fresh: int) -> list[Sight]:
        """``num`` sights, after ``num_fresh`` of the pool were replaced by new ones."""
        for _ in range(num_fresh):
            place = int(self._rng.integers(len(self._sights)))
            self._sights[place] = Sight.of(world.sample_scene(self._rng, "train"))
        return [self._sights[int(place)] for place in self._rng.integers(len(self._sights), size=num)]


def pretrain(recipe: Recipe) -> Qwen2_5_VLForConditionalGeneration:
    """A base model made by the recipe."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=recipe.seed)
    # torch's fused attention has a slow backward on a CPU.
    model.set_attn_implementation("eager")
    encoder = Encoder(tokenizer)
    rng = np.random.default_rng(recipe.seed)
    warm_up(model, Words.of(tokenizer), recipe, rng)
    pool = SightPool(rng)
    recorder = GazeRecorder(model.model.language_model)
    train_stage("binding", model, recorder, encoder, recipe.binding, pool, rng)
    train_stage("joint", model, recorder, encoder, recipe.joint, pool, rng)
    # A generator of its own, so that this stage can be run again from a saved joint stage.
    rng = np.random.default_rng([recipe.seed, 1])
    train_stage("polish", model, recorder, encoder, recipe.polish, SightPool(rng), rng)
    untie(model)
    return model.eval()


def training_data_digest(seed: int, *, num: int = 500) -> str:
    """SHA-256 over ``num`` training pictures of a seed: another drawing, font or layout changes it.

    Lessons draw their scenes as they need them, so there is no file of data whose digest could be taken.
    """
    rng = np.random.default_rng(seed)
    digest = hashlib.sha256()
    for _ in range(num):
        digest.update(world.draw(world.sample_scene(rng, "train")).tobytes())
    return digest.hexdigest()


def warm_up(
    model: Qwen2_5_VLForConditionalGeneration, words: Words, recipe: Recipe, rng: np.random.Generator
) -> None:
    """Train tower, word embeddings and throw-away heads on dense labels, in place."""
    visual, table = model.model.visual, model.model.language_model.embed_tokens.weight
    torch.manual_seed(recipe.seed)
    heads = DenseHeads()
    parameters = [*visual.parameters(), *heads.parameters(), table]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.warmup_lr, betas=_BETAS, weight_decay=0.05)

    def loss(_step: int) -> dict[str, torch.Tensor]:
        total, f1 = warmup_loss(
            visual, heads, table, words, rng, num_views=recipe.warmup_views, num_pages=recipe.warmup_pages
        )
        return {"loss": total, "page_f1": torch.tensor(f1)}

    _optimize("warmup", optimizer, recipe.warmup_steps, loss)


def train_stage(
    name: str,
    model: Qwen2_5_VLForConditionalGeneration,
    recorder: GazeRecorder,
    encoder: Encoder,
    stage: Stage,
    pool: SightPool,
    rng: np.random.Generator,
) -> None:
    """Train on lessons, in place."""
    tower = list(model.model.visual.parameters())
    for parameter in tower:
        parameter.requires_grad_(stage.tower_lr_factor > 0)
    rest = [*model.model.language_model.parameters()]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if stage.tower_lr_factor > 0:
        groups.append({"params": tower, "weight_decay": 0.0, "lr": stage.lr * stage.tower_lr_factor})
    optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=_BETAS)

    def loss(_step: int) -> dict[str, torch.Tensor]:
        sights = pool.draw(stage.batch_size, num_fresh=2)
        lessons = [
            sample_lesson(sight, encoder, rng, stage.turns, max_tokens=stage.max_tokens) for sight in sights
        ]
        text_loss, gaze_loss = lesson_losses(
            model, recorder, lessons, length=stage.max_tokens, tower_learns=stage.tower_lr_factor > 0
        )
        return {"loss": text_loss + stage.gaze_weight * gaze_loss, "text": text_loss, "gaze": gaze_loss}

    _optimize(name, optimizer, stage.steps, loss)


def lesson_losses(
    model: Qwen2_5_VLForConditionalGeneration,
    recorder: GazeRecorder,
    lessons: list[Lesson],
    *,
    length: int,
    tower_learns: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy of the answers and KL of the gazes; lessons are padded to ``length`` tokens."""
    encoder = lessons[0].encoder
    ids, weights, positions = collate(lessons, length=length)
    with torch.set_grad_enabled(tower_learns):
        features = encode_pictures(model.model.visual, [p for lesson in lessons for p in lesson.pictures])
    hidden = forward_hidden(model, ids, positions, features, image_token=encoder.image_token)
    weight = weights[:, 1:].flatten()
    chosen = weight.nonzero()[:, 0]
    num_labels = len(chosen)
    padded = math.ceil(num_labels / _LABEL_BUCKET) * _LABEL_BUCKET
    chosen = torch.cat([chosen, chosen[:1].expand(padded - num_labels)])
    logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[chosen])[:num_labels].float()
    chosen = chosen[:num_labels]
    entropy = functional.cross_entropy(logits, ids[:, 1:].flatten()[chosen], reduction="none")
    text_loss = (entropy * weight[chosen]).sum() / weight.sum()
    return text_loss, recorder.loss([lesson.gazes for lesson in lessons])


def _optimize(
    name: str, optimizer: torch.optim.Optimizer, steps: int, losses: Callable[[int], dict[str, torch.Tensor]]
) -> None:
    """Run the steps in bf16 with clipped gradients; the rate rises for 40 steps, then falls to 5 %."""
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, float] = {}
    started = time.monotonic()
    for step in range(steps):
        factor = min(1.0, (step + 1) / 40) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            values = losses(step)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for key, value in values.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if (step + 1) % _LOG_EVERY == 0:
            means = " ".join(f"{key} {value / _LOG_EVERY:.3f}" for key, value in sums.items())
            logger.info(
                "%s step %d of %d, %.0f s: %s", name, step + 1, steps, time.monotonic() - started, means
            )
            sums.clear()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m models.tiny.pretrain", description=__doc__)
    parser.add_argument("out_dir", type=Path, nargs="?", help="where to write the base")
    parser.add_argument(
        "--score", type=Path, metavar="DIR", help="measure the base in DIR instead of making one"
    )
    parser.add_argument("--num", type=int, default=500, help="scenes to score on")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--polish-steps", type=int, help="steps of the last stage, instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    if arguments.score is not None:
        print(json.dumps(score_base(arguments.score, num=arguments.num), indent=2))
        return
    if arguments.out_dir is None:
        parser.error("OUT_DIR is missing")
    recipe = Recipe(seed=arguments.seed)
    if arguments.polish_steps is not None:
        recipe = replace(recipe, polish=replace(recipe.polish, steps=arguments.polish_steps))
    started = time.monotonic()
    model = pretrain(recipe)
    minutes = (time.monotonic() - started) / 60
    save_base(model, build_tokenizer(), arguments.out_dir)
    scores = score_base(arguments.out_dir, num=arguments.num)
    provenance = {
        "command": f"python -m models.tiny.pretrain OUT_DIR --seed {recipe.seed} "
        f"--polish-steps {recipe.polish.steps}",
        "recipe": asdict(recipe),
        "training_pictures_sha256": training_data_digest(recipe.seed),
        "minutes": round(minutes, 1),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "scores": scores,
    }
    write_provenance(arguments.out_dir, provenance)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
