"""Prompts as vLLM's engine takes them, made by the encoder that the trainer uses.

vLLM's own rendering would tokenise placeholders, call the processor and look for the places of the pictures
anew in every turn. Here ids and places are known already, so engine and trainer cannot differ in them, and a
picture is cut into patches once for all its turns and samples.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from models.encoding import Collapsed, Encoder
from models.errors import EncodingError
from models.feature_store import FeatureStore
from models.region import Picture

from transformers import BatchFeature  # isort: skip
from vllm.inputs import EngineInput, mm_input, tokens_input  # isort: skip
from vllm.multimodal.inputs import (  # isort: skip
    MultiModalFieldConfig,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

MAX_CACHED_BYTES = 1 << 30
_MODALITY = "image"

LookAt = Callable[[Sequence[Picture]], list[Tensor]]


class Inputs:
    """Makes vLLM's inputs. Pictures are given as pixels, which vLLM normalises and its tower looks at; with
    ``look_at`` as the features (visual tokens, D) that this finds, and vLLM's tower has nothing to do.

    Pixels of pictures that were seen lately are kept, up to a gibibyte; features are ``look_at``'s to keep.
    """

    def __init__(self, encoder: Encoder, *, max_pictures: int, look_at: LookAt | None = None) -> None:
        self.look_at = look_at
        self._encoder = encoder
        self._max_pictures = max_pictures
        self._pixels = FeatureStore(max_bytes=MAX_CACHED_BYTES)

    def check(self, collapsed: Collapsed) -> None:
        """Raise EncodingError where there are more pictures than the engine takes, or one whose sides hold no
        whole number of visual tokens."""
        if len(collapsed.pictures) > self._max_pictures:
            raise EncodingError(
                f"A sequence with {len(collapsed.pictures)} images reached the engine, which takes at most "
                f"{self._max_pictures}. Raise engine.max_images, or lower look.max_crops."
            )
        for picture in collapsed.pictures:
            self._encoder.grid(picture)

    def see(self, pictures: Sequence[Picture]) -> dict[str, MultiModalKwargsItem]:
        """What vLLM is given of each picture, by digest."""
        shown = {picture.digest: picture for picture in pictures}
        if self.look_at is None:
            return {digest: self._item(one, pixel_values=self._cut(one)) for digest, one in shown.items()}
        found = zip(shown.items(), self.look_at(list(shown.values())), strict=True)
        return {digest: self._item(one, image_embeds=features.cpu()) for (digest, one), features in found}

    def of(
        self, collapsed: Collapsed, seen: dict[str, MultiModalKwargsItem], *, salt: str = ""
    ) -> EngineInput:
        """One sequence that was checked, its pads expanded; it shares caches with those of the same ``salt``.
        ``seen`` is what :meth:`see` found of its pictures."""
        pictures = collapsed.pictures
        ids = self._encoder.expand_ids(collapsed).tolist()
        if not pictures:
            return tokens_input(ids, cache_salt=salt or None)
        return mm_input(
            ids,
            MultiModalKwargsItems({_MODALITY: [seen[picture.digest] for picture in pictures]}),
            {_MODALITY: [picture.digest + salt for picture in pictures]},
            {_MODALITY: list(self._places(collapsed))},
            cache_salt=salt or None,
        )

    def _places(self, collapsed: Collapsed) -> Iterator[PlaceholderRange]:
        """Where each picture's visual tokens are in the expanded sequence."""
        pads = np.flatnonzero(np.asarray(collapsed.ids) == self._encoder.image_token_id)
        added = 0  # by the pictures before
        for pad, picture in zip(pads.tolist(), collapsed.pictures, strict=True):
            rows, columns = self._encoder.grid(picture)
            yield PlaceholderRange(offset=pad + added, length=rows * columns)
            added += rows * columns - 1

    def _cut(self, picture: Picture) -> Tensor:
        """Patches (N, patch values), uint8."""
        found = self._pixels.get(picture.digest)
        if found is None:
            found, _ = self._encoder.patches([picture], normalise=False)
            self._pixels.put({picture.digest: found})
        return found

    def _item(self, picture: Picture, **values: Tensor) -> MultiModalKwargsItem:
        ((name, rows),) = values.items()
        grids = self._encoder.patch_grids([picture])
        fields = {
            name: MultiModalFieldConfig.flat(_MODALITY, [slice(0, len(rows))]),
            "image_grid_thw": MultiModalFieldConfig.batched(_MODALITY, keep_on_cpu=True),
        }
        found = BatchFeature({name: rows, "image_grid_thw": grids})
        (item,) = MultiModalKwargsItems.from_hf_inputs(found, fields)[_MODALITY]
        return item
