"""The policy: Qwen2.5-VL with a frozen vision tower, and the log-probs that training needs.

Three choices make it fast and exact:

1. a frozen tower is no part of the module that DeepSpeed partitions, casts and updates, and a picture's
   features are computed once and kept by the picture's digest (:mod:`models.feature_store`);
2. only hidden states that predict a *sampled* token go through the output head;
3. banned tokens (vision tokens, ids without text) are taken out of the softmax, exactly as the engines do.

The rollouts of one question share its prompt, which is most of their tokens: :func:`collate_sharing_prompts`
lets it be computed, and differentiated, once for all of them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.config import Precision
from models.encoding import (
    Encoded,
    Encoder,
)  # before transformers' model: it declares torchvision's operators
from models.errors import EncodingError
from models.feature_store import FeatureStore
from models.gradient_watch import GradientWatch
from models.packing import packed_length, padded_length
from models.region import Picture
from models.segments import ATTENTION, Segments

from transformers import Qwen2_5_VLForConditionalGeneration  # isort: skip
from transformers.utils.logging import disable_progress_bar  # isort: skip

DTYPES: Mapping[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEATURE_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B sequences padded on the right to T tokens.

    Pictures come as ``features`` (the visual tokens of all rows in reading order) when the tower is frozen,
    else as ``patches`` with ``grids``, so that the tower receives its gradient. With ``prompts`` (another
    batch, of G sequences) row b goes on where sequence ``prompt_of[b]`` ends. With ``segments`` there is one
    row, B = 1, of several sequences one after another that do not see each other.
    """

    ids: Tensor  # (B, T) int64
    positions: Tensor  # (3, B, T) int64
    mask: Tensor  # (B, T) bool, False on padding
    sampled: Tensor  # (B, T) bool
    engine_logprobs: Tensor  # (B, T) float32
    features: Tensor | None = None  # (visual tokens, D)
    patches: Tensor | None = None  # (patches, patch values)
    grids: Tensor | None = None  # (pictures, 3)
    prompts: "Batch | None" = None
    prompt_of: Tensor | None = None  # (B,) int64
    segments: Segments | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: value.to(device) for name, value in found.items() if value is not None})


class Policy(nn.Module):
    """Qwen2.5-VL as the trainers see it; ``forward`` gives log-probs. DeepSpeed may wrap it, ZeRO 0 to 3."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, *, freeze_vision: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = model
        self._frozen_tower: tuple[nn.Module, ...] = ()
        if freeze_vision:
            # In a tuple it is no submodule: nobody partitions, casts, optimises or saves it by mistake.
            self._frozen_tower = (model.model.visual.requires_grad_(False).eval(),)
            del model.model.visual
        self._store = FeatureStore(max_bytes=FEATURE_CACHE_BYTES)
        self._looks_together = False
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
        return self._banned.device  # type: ignore[return-value]

    def features(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Features (visual tokens, D) of each picture, without gradient; cached when the tower is frozen."""
        digests = {picture.digest for picture in pictures}
        cached = {digest: self._store.get(digest) for digest in digests}
        missing = {picture.digest: picture for picture in pictures if cached[picture.digest] is None}
        found = {digest: features for digest, features in cached.items() if features is not None}
        if missing:
            computed = dict(zip(missing, self._look_at(list(missing.values())), strict=True))
            found |= computed
            if self.tower_is_frozen:
                self._store.put(computed)
        return [found[picture.digest] for picture in pictures]

    def keep_features(self, folder: Path, *, max_bytes: int, max_file_bytes: int) -> FeatureStore:
        """Keep a frozen tower's features also in files: in a folder of ``folder`` for this tower, of at most
        ``max_file_bytes``, when they take more than ``max_bytes`` of memory. Returns the store."""
        self._store = FeatureStore(
            max_bytes=max_bytes, folder=folder / self._tower_digest(), max_file_bytes=max_file_bytes
        )
        return self._store

    def look_afresh(self) -> None:
        """Forget all features, and from now on look at the new pictures of a call together, also on a CPU.

        That takes a fraction of the time; the last bits of features then depend on the calls since. A trainer
        that calls this before every step has the same bits whenever it takes that step.
        """
        self._store.forget()
        self._looks_together = True

    def _tower_digest(self) -> str:
        """Names what features depend on but for the picture: the tower's weights, their type and device, how
        it is built, and how a picture is cut into patches."""
        processor = self.encoder.processor.image_processor.to_json_string()
        told = f"{self.model.config.vision_config.to_json_string()} {processor} {self.device.type}"
        digest = hashlib.sha256(told.encode())
        for name, tensor in self.tower.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log-probs (B, T-1) of ``ids[:, 1:]`` at a sampling temperature, nats, fp32; 0 where not sampled."""
        hidden = self.hidden_states(batch)
        chosen = batch.sampled[:, 1:]
        targets = batch.ids[:, 1:][chosen]  # (N,)
        logits = self.logits(hidden[:, :-1][chosen], temperature=temperature)  # (N, V)
        logprobs = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
        return torch.zeros(chosen.shape, device=chosen.device).masked_scatter(chosen, logprobs)

    def hidden_states(self, batch: Batch) -> Tensor:
        """The last layer's output (B, T, D), before the output head."""
        language_model = self.model.model.language_model
        lengths = batch.segments.lengths if batch.segments is not None else None
        inputs = self.gradients.follow(self._embed(batch), lengths)
        if batch.prompts is None or batch.prompt_of is None:
            # Padding is on the right, where causal attention never looks: no mask, so the fast kernel runs.
            return language_model(
                inputs_embeds=inputs,
                position_ids=batch.positions,
                use_cache=False,
                segments=batch.segments,
            ).last_hidden_state
        prompts = batch.prompts
        cache = language_model(
            inputs_embeds=self._embed(prompts), position_ids=prompts.positions, use_cache=True
        ).past_key_values
        cache.batch_select_indices(batch.prompt_of)
        # A prompt's padding now lies between it and its continuation.
        mask = torch.cat([prompts.mask[batch.prompt_of], torch.ones_like(batch.mask)], dim=1)
        return language_model(
            inputs_embeds=inputs,
            position_ids=batch.positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    def _embed(self, batch: Batch) -> Tensor:
        """Input embeddings (B, T, D), visual features in place of the image pads."""
        embeddings = self.model.get_input_embeddings()(batch.ids)
        features = batch.features
        if batch.patches is not None and batch.grids is not None:
            features = torch.cat(_tower_features(self.tower, batch.patches, batch.grids))
        if features is not None:
            is_pad = (batch.ids == self.encoder.image_token_id)[..., None]
            embeddings = embeddings.masked_scatter(is_pad, features.to(embeddings.dtype))
        return embeddings

    def logits(self, hidden: Tensor, *, temperature: float) -> Tensor:
        """Logits (N, V) in fp32, divided by the temperature; minus infinity for banned tokens."""
        logits = self.model.lm_head(hidden).float() / temperature
        return logits.index_fill(1, self._banned, -torch.inf)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its name in the Hugging Face model, the frozen tower included; detached.

        Under ZeRO-3 call it inside ``deepspeed.zero.GatheredParameters``.
        """
        tied = self.model.config.get_text_config().tie_word_embeddings
        for name, tensor in self.model.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                yield name, tensor
        for tower in self._frozen_tower:
            for name, tensor in tower.state_dict().items():
                yield f"model.visual.{name}", tensor

    @torch.no_grad()
    def _look_at(self, pictures: list[Picture]) -> list[Tensor]:
        for tower in self._frozen_tower:
            tower.to(self.device)
        # On a CPU one at a time: kernels are chosen by size, so the last bits of a picture's features would
        # depend on the others, and with them on what a run that goes on still has in its cache.
        is_together = self._looks_together or self.device.type == "cuda"
        calls = [pictures] if is_together else [[picture] for picture in pictures]
        found = []
        for call in calls:
            patches, grids = self.encoder.patches(call)
            found += _tower_features(self.tower, patches.to(self.device), grids.to(self.device))
        # Clones: a slice would keep the features of the whole call alive in the cache.
        return [features.clone() for features in found]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Policy":
        """Casts and moves the module, but keeps rotary frequencies in fp32.

        DeepSpeed casts the whole module to bf16, where far positions would fall together; transformers itself
        never casts these buffers.
        """
        rotary = self.model.model.language_model.rotary_emb
        exact = rotary.inv_freq.clone()
        super()._apply(fn, recurse)
        rotary.inv_freq = exact.to(rotary.inv_freq.device)
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
    return Policy(model, encoder, freeze_vision=freeze_vision).train()


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
    """One row of all sequences, one after another, each with the rotary positions it has alone.

    ``forward`` then gives (1, T-1) log-probs; :func:`per_segment` sums them up by sequence. Raises
    EncodingError as :func:`collate` does.
    """
    lengths = tuple(map(len, encoded))
    total = sum(lengths)
    batch = _empty(1, packed_length(total), policy)
    for one, end in zip(encoded, accumulate(lengths), strict=True):
        _write(one, batch, row=0, start=end - len(one))
    padding = batch.ids.shape[1] - total
    segments = Segments.of((*lengths, padding) if padding else lengths)
    return _with_pictures(replace(batch, segments=segments), encoded, policy)


def per_segment(logprobs: Tensor, batch: Batch) -> Tensor:
    """Sums (number of segments,) of a packed batch's log-probs (1, T-1); padding is the last segment."""
    assert batch.segments is not None, "the batch is not packed"
    # The log-prob at t is of the token at t + 1. A segment's first token is never sampled.
    aligned = nn.functional.pad(logprobs[0], (1, 0))
    return torch.stack([part.sum() for part in aligned.split(batch.segments.lengths)])


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


def collate_sharing_prompts(encoded: Sequence[Encoded], policy: Policy) -> Batch:
    """Like :func:`collate`, but every distinct prompt is one row of ``batch.prompts``.

    A row begins with the last token of its prompt, which predicts the first sampled one, so ``forward`` gives
    the same log-probs, aligned with this batch's shorter ``sampled`` and ``engine_logprobs``.
    """
    halves = [_split_after_prompt(one, policy.encoder.vision_start_id) for one in encoded]
    keys = [(prompt.ids.tobytes(), *(picture.digest for picture in prompt.pictures)) for prompt, _ in halves]
    distinct = {key: prompt for key, (prompt, _) in zip(keys, halves, strict=True)}
    numbers = {key: number for number, key in enumerate(distinct)}
    rows = collate([continuation for _, continuation in halves], policy)
    prompt_of = torch.tensor([numbers[key] for key in keys], device=policy.device)
    return replace(rows, prompts=collate(list(distinct.values()), policy), prompt_of=prompt_of)


def _split_after_prompt(one: Encoded, vision_start_id: int) -> tuple[Encoded, Encoded]:
    """What comes before the token that predicts the first sampled one, and the rest."""
    first_sampled = int(one.sampled.argmax()) if one.sampled.any() else len(one)
    cut = first_sampled - 1
    num_pictures = int((one.ids[:cut] == vision_start_id).sum())
    return _part(one, slice(None, cut), one.pictures[:num_pictures]), _part(
        one, slice(cut, None), one.pictures[num_pictures:]
    )


def _part(one: Encoded, place: slice, pictures: tuple[Picture, ...]) -> Encoded:
    return Encoded(
        ids=one.ids[place],
        sampled=one.sampled[place],
        engine_logprobs=one.engine_logprobs[place],
        versions=one.versions[place],
        positions=one.positions[:, place],
        pictures=pictures,
    )


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


def _tower_features(tower: nn.Module, patches: Tensor, grids: Tensor) -> list[Tensor]:
    """Features (visual tokens, D) per picture, from patches (N, values) and grids (pictures, 3)."""
    dtype = next(tower.parameters()).dtype
    merged = tower(patches.to(dtype), grid_thw=grids).pooler_output  # (visual tokens, D)
    visual_tokens = grids.prod(dim=1) * len(merged) // grids.prod(dim=1).sum()
    return list(merged.split(visual_tokens.tolist()))
