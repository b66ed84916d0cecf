"""TRL's trainers on our model and data: the other side of :mod:`tests.benchmarks.training_speed`."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from models._compat import declare_torchvision_operators
from models.encoding import Encoded, Encoder
from models.presets import Preset
from models.records import Question, VLIRRecord
from models.rgrpo.replay import rebuilt
from models.rgrpo.rollouts import KeptRollout
from models.rollout import Asked

declare_torchvision_operators()  # before transformers' model is imported

from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402


class Clock(TrainerCallback):
    """When each step ended, seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())


def fine_tune(model_path: Path, records: Sequence[VLIRRecord], preset: Preset, *, batch_size: int) -> "Steps":
    """Two epochs of TRL's ``SFTTrainer`` on the records; its tower is frozen as ours is."""
    encoder = Encoder.load(model_path)
    clock = Clock()
    with TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            _model(model_path),
            args=SFTConfig(
                num_train_epochs=2,
                per_device_train_batch_size=batch_size,
                max_length=None,
                dataloader_drop_last=True,
                dataset_kwargs={"skip_prepare_dataset": True},
                remove_unused_columns=False,
                **_common(folder),
            ),
            train_dataset=Dataset.from_list([_messages(record, encoder, preset.look) for record in records]),
            processing_class=AutoProcessor.from_pretrained(model_path),
            callbacks=[clock],
        )
        collate = trainer.data_collator
        tokens: list[int] = []

        def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = collate(examples)
            tokens.append(int(batch["attention_mask"].sum()))
            return batch

        trainer.data_collator = counting
        trainer.train()
    return Steps(clock.ends, tokens[: len(clock.ends)])


@dataclass(frozen=True, slots=True)
class Steps:
    """When each step ended, seconds, and how many tokens without padding it had."""

    ends: list[float]
    tokens: list[int]


def reinforce(
    model_path: Path,
    steps: Sequence[Sequence[KeptRollout]],
    questions: Mapping[str, Question],
    preset: Preset,
    *,
    batch_size: int,
    num_processes: int,
) -> list[float]:
    """When each step of TRL's ``GRPOTrainer`` ended, on the rollouts of our steps: see LookAgainTrainer.

    ``batch_size`` is that of one of the processes, which torchrun started.
    """
    encoder = Encoder.load(model_path)
    config = preset.rgrpo
    completions: dict[str, list[Completion]] = {}
    for kept in (one for step in steps for one in step):
        question = questions[kept.transcript.question_id]
        completions.setdefault(question.id, []).append(Completion.of(kept, question, preset, encoder))
    rows = [
        _question_row(questions[kept.transcript.question_id], preset)
        for step in steps
        for kept in step[:: config.group_size]
    ]
    num_rollouts = config.questions_per_step * config.group_size
    longest = max(one.length for group in completions.values() for one in group)
    clock = Clock()
    with TemporaryDirectory() as folder:
        trainer = LookAgainTrainer(
            _model(model_path),
            completions=completions,
            args=GRPOConfig(
                max_steps=len(steps),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=num_rollouts // (batch_size * num_processes),
                ddp_backend="gloo" if num_processes > 1 else None,
                ddp_find_unused_parameters=False,
                num_generations=config.group_size,
                max_completion_length=longest,
                temperature=config.temperature,
                shuffle_dataset=False,
                beta=0.0,
                **_common(folder),
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoProcessor.from_pretrained(model_path),
            callbacks=[clock],
        )
        trainer.train()
    return clock.ends


@dataclass(frozen=True, slots=True)
class Completion:
    """One of our rollouts as TRL's loop takes it: ``turns`` are the ids of each turn and those that were put
    behind it (a crop with its markers, a message), ``crops`` the picture of each turn if it got one."""

    prompt: list[int]
    turns: list[tuple[list[int], list[int]]]
    crops: list[Image.Image | None]
    reward: float

    @property
    def length(self) -> int:
        """Tokens behind the prompt."""
        return sum(len(sampled) + len(given) for sampled, given in self.turns)

    @classmethod
    def of(cls, kept: KeptRollout, question: Question, preset: Preset, encoder: Encoder) -> "Completion":
        trajectory = rebuilt(kept.transcript, question, preset.look)
        encoded = encoder.encode(trajectory)
        reward = kept.transcript.reward
        start = int(encoded.sampled.argmax())
        turns = _turns(encoded, start)
        crops = iter([crop.picture.image for crop in trajectory.crops])
        return cls(
            encoded.ids[:start].tolist(),
            turns,
            [next(crops) if encoder.image_token_id in given else None for _, given in turns],
            0.0 if reward is None else reward.total,
        )


def _turns(encoded: Encoded, start: int) -> list[tuple[list[int], list[int]]]:
    """The completion cut where sampled tokens begin."""
    sampled = encoded.sampled[start:]
    ids = encoded.ids[start:]
    begins = np.flatnonzero(sampled & ~np.concatenate([[False], sampled[:-1]]))
    turns = []
    for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
        here = sampled[begin:end]
        turns.append((ids[begin:end][here].tolist(), ids[begin:end][~here].tolist()))
    return turns


class LookAgainTrainer(GRPOTrainer):
    """TRL's trainer, generating our completions with crops in the middle.

    It samples with transformers, token by token and turn by turn, as it does with tools that show pictures; a
    logits processor lets only the next id of the recorded completion pass, so that both sides train on the
    same tokens and rewards. Its own loop for tools takes calls in the form of a chat template; this one takes
    ours, and is otherwise the same: the trajectories that looked go on together when all have ended a turn.
    """

    def __init__(self, model: Any, *, completions: Mapping[str, list[Completion]], **options: Any) -> None:
        super().__init__(model, reward_funcs=self._reward, **options)
        self._recorded = completions
        self._mine: list[Completion] = []
        self._turn: list[list[int]] = []
        # With a tool, crops reach the forward pass of the update too.
        self.tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
        self._generates = self.model.generate
        self.model.generate = self._generate_as_recorded

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        seen: Counter[str] = Counter()
        self._mine = []
        for row in inputs:
            name = row["question_id"]
            self._mine.append(self._recorded[name][seen[name]])
            seen[name] += 1
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
        if not self._turn:
            assert prompt_ids == [one.prompt for one in self._mine], "TRL sees other prompts"
            self._turn = [one.turns[0][0] for one in self._mine]
        expected, found = self._turn, super()._generate_single_turn(prompt_ids, *rest, **options)
        assert all(ids[: len(turn)] == turn for ids, turn in zip(found[0], expected, strict=True))
        self._turn = []
        return expected, found[1]

    def _generate_as_recorded(self, **inputs: Any) -> Any:
        start = inputs["input_ids"].shape[1]
        return self._generates(
            **inputs,
            logits_processor=LogitsProcessorList([_OnlyNext(self._turn, start)]),
            stopping_criteria=StoppingCriteriaList([_AtTheEnd(self._turn, start)]),
        )

    def _tool_call_loop(
        self,
        prompts: Any,
        prompt_ids: Any,
        completion_ids: Any,
        completions: Any,
        logprobs: Any,
        images: Any,
        multimodal_fields: Any,
    ) -> Any:
        ids = [list(one) for one in completion_ids]
        mask = [[1] * len(one) for one in ids]
        shown: list[list[Image.Image]] = [[] for _ in ids]
        number = 0
        while True:
            going = [row for row, one in enumerate(self._mine) if len(one.turns) > number + 1]
            for row in going:
                given, crop = self._mine[row].turns[number][1], self._mine[row].crops[number]
                ids[row] += given
                mask[row] += [0] * len(given)
                shown[row] += [] if crop is None else [crop]
            number += 1
            if not going:
                break
            pictures = [images[row] + shown[row] for row in going]
            fields = self.processing_class.image_processor(
                images=[picture for row in pictures for picture in row], return_tensors="pt"
            )
            self._turn = [self._mine[row].turns[number][0] for row in going]
            written, _ = self._generate_single_turn(
                [prompt_ids[row] + ids[row] for row in going],
                pictures,
                dict(fields),
                num_generations=1,
                has_tool_images=True,
            )
            for row, turn in zip(going, written, strict=True):
                ids[row] += turn
                mask[row] += [1] * len(turn)
        return mask, completions, ids, logprobs, sum(map(len, shown)), 0, shown

    def _reward(self, completions: Any, **columns: Any) -> list[float]:
        return [one.reward for one in self._mine]


class _OnlyNext(LogitsProcessor):
    def __init__(self, turns: Sequence[Sequence[int]], start: int) -> None:
        self._turns, self._start = turns, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self._start
        wanted = torch.tensor([[turn[min(place, len(turn) - 1)]] for turn in self._turns])
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


class _AtTheEnd(StoppingCriteria):
    def __init__(self, turns: Sequence[Sequence[int]], start: int) -> None:
        self._lengths, self._start = torch.tensor([len(turn) for turn in turns]), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        return input_ids.shape[1] - self._start >= self._lengths


def _common(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 10_000,
    }


def _model(path: Path) -> Any:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype="float32")
    model.model.visual.requires_grad_(False)
    return model


def _messages(record: VLIRRecord, encoder: Encoder, look: Any) -> dict[str, Any]:
    """A record as TRL takes it: messages with their pictures, crops in the assistant's turn."""
    pictures = encoder.encode_record(record, look).pictures
    said: list[dict[str, str]] = []
    for step in record.steps:
        said.append({"type": "text", "text": step.text})
        if step.box is not None:
            said.append({"type": "image", "text": ""})
    return {
        "images": [picture.image for picture in pictures],
        "messages": [*_prompt(record.question.text, look), {"role": "assistant", "content": said}],
    }


def _question_row(question: Question, preset: Preset) -> dict[str, Any]:
    asked = Asked.of(question, preset.look)
    return {
        "question_id": question.id,
        "image": asked.prompt.pictures[0].image,
        "prompt": _prompt(question.text, preset.look),
    }


def _prompt(text: str, look: Any) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"type": "text", "text": look.system}]},
        {"role": "user", "content": [{"type": "image", "text": ""}, {"type": "text", "text": text}]},
    ]
