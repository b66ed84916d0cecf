"""The policy: Qwen2.5-VL with a frozen vision tower, and the log-probs that training needs.

Three choices make it fast and exact:

1. a frozen tower is no part of the module that DeepSpeed partitions, casts and updates, and a picture's
   features are computed once and kept by the picture's digest (:mod:`models.feature_store`);
2. only hidden states that predict a *sampled* token go through the last layer's MLP
   (:mod:`models.last_layer`) and the output head, in chunks where they are many (:mod:`models.output_head`);
3. banned tokens (vision tokens, ids without text) are taken out of the softmax, exactly as the engines do.

Trainers take many sequences as one packed row (:func:`collate_packed`): nothing is padded, and what several
sequences begin with, which is most of their tokens, is computed and differentiated once for all of them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from models.config import Precision, RGRPOConfig, SFTConfig
from models.encoding import (
    Encoded,
    Encoder,
)  # before transformers' model: it declares torchvision's operators
from models.errors import EncodingError
from models.feature_store import FeatureStore
from models.gradient_watch import GradientWatch
from models.last_layer import LastLayer
from models.output_head import OutputHead, processed
from models.packing import packed_length, padded_length
from models.prefixes import share_beginnings
from models.region import Picture
from models.segments import ATTENTION, Segments
from models.tower import Grouping, PatchProjection, calls, tower_features

from transformers import Qwen2_5_VLForConditionalGeneration  # isort: skip
from transformers.utils.logging import disable_progress_bar  # isort: skip

DTYPES: Mapping[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEATURE_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B sequences padded on the right to T tokens.

    Pictures come as ``features`` (the visual tokens of all rows in reading order) when the tower is frozen,
    else as ``patches`` with ``grids``, so that the tower receives its gradient. With ``segments`` there is
    one row, B = 1, of several sequences: ``own`` are the places of what each of them, in the order given,
    does not share with others.
    """

    ids: Tensor  # (B, T) int64
    positions: Tensor  # (3, B, T) int64
    mask: Tensor  # (B, T) bool, False on padding
    sampled: Tensor  # (B, T) bool
    engine_logprobs: Tensor  # (B, T) float32
    features: Tensor | None = None  # (visual tokens, D)
    patches: Tensor | None = None  # (patches, patch values)
    grids: Tensor | None = None  # (pictures, 3)
    segments: Segments | None = None
    own: tuple[slice, ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: value.to(device) for name, value in found.items() if hasattr(value, "to")}
        )


class Policy(nn.Module):
    """Qwen2.5-VL as the trainers see it; ``forward`` gives log-probs. DeepSpeed may wrap it, ZeRO 0 to 3."""

    _banned: Tensor  # (number of banned tokens,) int64

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, *, freeze_vision: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = model
        # Asked of the weights: published config files name it elsewhere than transformers writes it.
        self._is_tied = model.lm_head.weight is model.get_input_embeddings().weight
        self._frozen_tower: tuple[nn.Module, ...] = ()
        if freeze_vision:
            # In a tuple it is no submodule: nobody partitions, casts, optimises or saves it by mistake.
            self._frozen_tower = (model.model.visual.requires_grad_(False).eval(),)
            del model.model.visual
        self._store = FeatureStore(max_bytes=FEATURE_CACHE_BYTES)
        self._grouping: Grouping = "one"
        self.num_looked_at = 0  # pictures whose features were computed
        self.gradients = GradientWatch()
        self.register_buffer("_banned", torch.tensor(encoder.banned_ids), persistent=False)

    @property
    def tower(self) -> nn.Module:
        """The vision tower with its projector."""
        return self._frozen_tower[0] if self._frozen_tower else self.model.model.visual

    @property
    def tower_is_frozen(self) -> bool:
        """True when pictures enter as cached features and receive no gradient."""
        return bool(self._frozen_tower)

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self._banned.device

    def features(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Features (visual tokens, D) of each picture, without gradient; cached when the tower is frozen."""
        digests = {picture.digest for picture in pictures}
        cached = {digest: self._store.get(digest) for digest in digests}
        missing = {picture.digest: picture for picture in pictures if cached[picture.digest] is None}
        # What was kept may be on the host, what is computed is where the policy is.
        found = {digest: one.to(self.device) for digest, one in cached.items() if one is not None}
        if missing:
            self.num_looked_at += len(missing)
            computed = dict(zip(missing, self._look_at(list(missing.values())), strict=True))
            found |= computed
            if self.tower_is_frozen:
                self._store.put(computed)
        return [found[picture.digest] for picture in pictures]

    def keep_features(self, folder: Path | None, *, max_bytes: int, max_file_bytes: int) -> FeatureStore:
        """Keep a frozen tower's features in ``max_bytes`` of the host's memory, not of a GPU's, and beyond
        that in files: in a folder of ``folder`` for this tower, of at most ``max_file_bytes``. Without
        ``folder`` the rest is forgotten. Returns the store."""
        self._store = FeatureStore(
            max_bytes=max_bytes,
            folder=folder and folder / self._tower_digest(),
            max_file_bytes=max_file_bytes,
            on_host=True,
        )
        return self._store

    def look_in_bunches(self) -> None:
        """From now on look at several new pictures of a call at once, on a CPU too, where that takes half the
        time. A picture's features have the same bits whatever it is looked at with (:mod:`models.tower`)."""
        self._grouping = "bunch"

    def look_afresh(self) -> None:
        """Forget all features, and from now on look at all new pictures of a call together, also on a CPU.

        That takes a fraction of the time; the last bits of features then depend on the calls since. A trainer
        that calls this before every step has the same bits whenever it takes that step.
        """
        self._store.forget()
        self._grouping = "together"

    def _tower_digest(self) -> str:
        """Names what features depend on but for the picture: the tower's weights, their type and device, how
        it is built, how a picture is cut into patches, and how many are looked at in a call."""
        processor = self.encoder.processor.image_processor.to_json_string()
        vision = self.model.config.vision_config.to_json_string()
        told = f"{vision} {processor} {self.device.type} {self._grouping}"
        digest = hashlib.sha256(told.encode())
        for name, tensor in self.tower.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log-probs (B, T-1) of ``ids[:, 1:]`` at a sampling temperature, nats, fp32; 0 where not sampled."""
        chosen = batch.sampled[:, 1:]
        targets = batch.ids[:, 1:][chosen]  # (N,)
        states = self.hidden_states(batch, pad(chosen, (0, 1)).flatten().nonzero()[:, 0])  # (N, D)
        logprobs = self.model.lm_head(states, targets, temperature=temperature, banned=self._banned)
        return torch.zeros(chosen.shape, device=chosen.device).masked_scatter(chosen, logprobs)

    def hidden_states(self, batch: Batch, wanted: Tensor) -> Tensor:
        """The last layer's output (N, D), before the output head, of the tokens at the places ``wanted`` (N,)
        int64 of the rows one after another."""
        # Padding is on the right, where causal attention never looks: no mask, so the fast kernel runs.
        found = self.model.model.language_model(
            inputs_embeds=self.gradients.follow(self._embed(batch), batch.own),
            position_ids=batch.positions,
            use_cache=False,
            segments=batch.segments,
            wanted=wanted,
        )
        return found.last_hidden_state[0]

    def _embed(self, batch: Batch) -> Tensor:
        """Input embeddings (B, T, D), visual features in place of the image pads."""
        embeddings = self.model.get_input_embeddings()(batch.ids)
        features = batch.features
        if batch.patches is not None and batch.grids is not None:
            features = torch.cat(tower_features(self.tower, batch.patches, batch.grids))
        if features is not None:
            is_pad = (batch.ids == self.encoder.image_token_id)[..., None]
            embeddings = embeddings.masked_scatter(is_pad, features.to(embeddings.dtype))
        return embeddings

    def logits(self, hidden: Tensor, *, temperature: float) -> Tensor:
        """Logits (N, V) in fp32, divided by the temperature; minus infinity for banned tokens.

        For N sequences that are sampled; training's log-probs are :meth:`forward`'s, which holds fewer.
        """
        return processed(self.model.lm_head(hidden), temperature=temperature, banned=self._banned)

    def weights(self, *, trained_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its name in the Hugging Face model, detached; with ``trained_only`` without
        those of a frozen tower.

        Under ZeRO-3 call it inside ``deepspeed.zero.GatheredParameters``.
        """
        for name, tensor in self.model.state_dict().items():
            if not (self._is_tied and name == "lm_head.weight"):
                yield name, tensor
        for tower in () if trained_only else self._frozen_tower:
            for name, tensor in tower.state_dict().items():
                yield f"model.visual.{name}", tensor

    @torch.no_grad()
    def _look_at(self, pictures: list[Picture]) -> list[Tensor]:
        for tower in self._frozen_tower:
            if next(tower.parameters()).device != self.device:
                tower.to(self.device)
        found: dict[int, Tensor] = {}
        for numbers, shown in calls(pictures, "together" if self.device.type == "cuda" else self._grouping):
            patches, grids = self.encoder.patches(shown)
            features = tower_features(self.tower, patches.to(self.device), grids.to(self.device))
            # Clones: a slice would keep the features of the whole call alive in the cache.
            found |= {number: one.clone() for number, one in zip(numbers, features, strict=False)}
        return [found[number] for number in range(len(pictures))]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Policy":
        """Casts and moves the module, but keeps rotary frequencies in fp32.

        DeepSpeed casts the whole module to bf16, where far positions would fall together; transformers itself
        never casts these buffers.
        """
        # Of the language model, and of a tower that is trained.
        rotary: list[Any] = [module for module in self.modules() if hasattr(module, "inv_freq")]
        exact = [module.inv_freq.clone() for module in rotary]
        super()._apply(fn, recurse)
        for module, frequencies in zip(rotary, exact, strict=True):
            module.inv_freq = frequencies.to(module.inv_freq.device)
        return self


def load_policy(model_path: Path, *, dtype: Precision = "float32", freeze_vision: bool = True) -> Policy:
    """The policy of a model folder in Hugging Face layout, on the CPU, in training mode."""
    encoder = Encoder.load(model_path)
    disable_progress_bar()  # a stage shows its own
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_path,
        dtype=DTYPES[dtype],
        attn_implementation={"": "sdpa", "text_config": ATTENTION},
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    PatchProjection.replace_in(model.model.visual)
    LastLayer.replace_in(model.model.language_model)
    OutputHead.replace_in(model)
    return Policy(model, encoder, freeze_vision=freeze_vision).train()


def load_to_train(
    model_path: Path, training: SFTConfig | RGRPOConfig, *, freeze_vision: bool = True
) -> Policy:
    """The policy as a stage trains it, all of it in the stage's precision, a frozen tower too.

    DeepSpeed makes the master weights of what it has cast: that it is cast already changes none, and saves it
    half of the memory that the start would take.
    """
    policy = load_policy(model_path, dtype=training.precision, freeze_vision=freeze_vision)
    if training.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def load_reference(model_path: Path, policy: Policy, *, dtype: Precision) -> Policy:
    """The starting model beside the policy that is trained from it: frozen, on the same device.

    A frozen tower is the policy's own, held once, and a batch's ``features`` serve both. Every rank holds the
    whole reference, under ZeRO-3 too.
    """
    reference = load_policy(model_path, dtype=dtype, freeze_vision=policy.tower_is_frozen)
    if policy.tower_is_frozen:
        reference._frozen_tower = policy._frozen_tower
    return reference.to(policy.device).requires_grad_(False).eval()


def save_policy(policy: Policy, target: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a model folder (configuration, weights, tokenizer, processor) that vLLM and transformers load.

    ``weights`` are those to write, named as in :meth:`Policy.weights`; the policy's own when not given (under
    ZeRO-3 gather them first).
    """
    policy.model.save_pretrained(target, state_dict=dict(policy.weights() if weights is None else weights))
    policy.encoder.processor.save_pretrained(target)


def collate(encoded: Sequence[Encoded], policy: Policy) -> Batch:
    """One padded batch on the policy's device, its pictures included.

    Raises EncodingError when image pads and visual features disagree in number.
    """
    batch = _empty(len(encoded), padded_length(max(map(len, encoded))), policy)
    for row, one in enumerate(encoded):
        _write(one, batch, row=row, start=0)
    return _with_pictures(batch, encoded, policy)


def collate_packed(encoded: Sequence[Encoded], policy: Policy) -> Batch:
    """One row of all sequences, each with the rotary positions it has alone; common beginnings stand there
    once (:mod:`models.prefixes`).

    ``forward`` then gives (1, T-1) log-probs; :func:`by_sample` sorts them by sequence. Raises EncodingError
    as :func:`collate` does.
    """
    parts = share_beginnings(encoded, vision_start_id=policy.encoder.vision_start_id)
    ends = list(accumulate(len(part.tokens) for part in parts))
    batch = _empty(1, packed_length(ends[-1]), policy)
    own = [slice(0)] * len(encoded)
    for part, end in zip(parts, ends, strict=True):
        place = slice(end - len(part.tokens), end)
        _write(part.tokens, batch, row=0, start=place.start)
        if part.sample is not None:
            own[part.sample] = place
    lengths, parents = [len(part.tokens) for part in parts], [part.parent for part in parts]
    padding = batch.ids.shape[1] - ends[-1]
    if padding:
        lengths, parents = [*lengths, padding], [*parents, None]
    batch = replace(batch, segments=Segments.of(lengths, parents), own=tuple(own))
    return _with_pictures(batch, [part.tokens for part in parts], policy)


def by_sample(values: Tensor, batch: Batch) -> Tensor:
    """Values (1, T-1) for ``ids[:, 1:]`` of a packed batch as (number of sequences, longest), in the order of
    the sequences: of each the tokens of its own, zeros behind them. All sampled tokens are among these."""
    # A sequence's first own token is never sampled, and its value stands before its place begins.
    return pad_sequence([values[0, own.start : own.stop - 1] for own in batch.own], batch_first=True)


def _empty(num_rows: int, length: int, policy: Policy) -> Batch:
    """A batch of padding on the CPU."""
    shape = (num_rows, length)
    return Batch(
        ids=torch.full(shape, policy.encoder.pad_id),
        positions=torch.zeros((3, *shape), dtype=torch.int64),
        mask=torch.zeros(shape, dtype=torch.bool),
        sampled=torch.zeros(shape, dtype=torch.bool),
        engine_logprobs=torch.zeros(shape),
    )


def _write(one: Encoded, batch: Batch, *, row: int, start: int) -> None:
    """Put a sequence into a row of a batch that is being made."""
    place = slice(start, start + len(one))
    batch.ids[row, place] = torch.from_numpy(one.ids)
    batch.positions[:, row, place] = torch.from_numpy(one.positions)
    batch.mask[row, place] = True
    batch.sampled[row, place] = torch.from_numpy(one.sampled)
    batch.engine_logprobs[row, place] = torch.from_numpy(one.engine_logprobs)


def _with_pictures(batch: Batch, encoded: Sequence[Encoded], policy: Policy) -> Batch:
    """The batch with its sequences' pictures, on the policy's device."""
    num_pads = int((batch.ids == policy.encoder.image_token_id).sum())
    return replace(batch, **_pictures_of(encoded, policy, num_pads=num_pads)).to(policy.device)


def _pictures_of(encoded: Sequence[Encoded], policy: Policy, *, num_pads: int) -> dict[str, Any]:
    """The batch's pictures in reading order: features when the tower is frozen, else patches and grids."""
    pictures = [picture for one in encoded for picture in one.pictures]
    if not pictures:
        return {}
    if policy.tower_is_frozen:
        features = torch.cat(policy.features(pictures))
        found: dict[str, Any] = {"features": features}
        num_features = len(features)
    else:
        patches, grids = policy.encoder.patches(pictures)
        found = {"patches": patches, "grids": grids}
        num_features = int(grids.prod(dim=1).sum()) // policy.encoder.merge_size**2
    if num_features != num_pads:
        raise EncodingError(f"The batch has {num_pads} image pads and {num_features} visual features.")
    return found
