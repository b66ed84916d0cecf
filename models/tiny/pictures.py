"""Pictures for the tiny model: view, zoomed crop, patches, and a batched forward of the vision tower.

transformers runs the attention of each picture of a batch on its own, which is slow for hundreds of tiny
pictures. :func:`encode_pictures` computes the same features in padded batches; a unit test holds it to the
library's forward. Arrays are uint8 (height, width, 3) with sides that are multiples of 28 pixels.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from models import region
from models.tiny import world
from models.tiny.architecture import MAX_PIXELS, MERGE_SIZE, MIN_PIXELS, PATCH_SIZE, TOKEN_SIZE

Grid = tuple[int, int]
BUDGET = region.PixelBudget(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, factor=TOKEN_SIZE)
_PATCH_BUCKET = 16  # padded lengths are multiples of this: bf16 compiles one kernel per shape on a CPU
_BATCH_BUCKET = 8
VIEW_PATCHES = (world.VIEW_SIZE // PATCH_SIZE) ** 2


def view_of(picture: Image.Image) -> np.ndarray:
    """The picture as the model sees it at first: (112, 112, 3)."""
    return np.asarray(region.see(picture, BUDGET).image)


def zoomed_crop(picture: Image.Image, box: world.Box, *, in_two_steps: bool = False) -> np.ndarray:
    """The crop of a box (original pixels), zoomed by Eq. 4 and smart-resized.

    ``in_two_steps`` resamples twice (zoom, then smart resize), as a processor does that is handed the zoomed
    crop.
    """
    asked = region.Box(*box, space="original")
    if not in_two_steps:
        return np.asarray(region.look(picture, asked, BUDGET).image)
    scale = region.zoom_scale(asked.area / (picture.width * picture.height))
    zoomed = picture.crop(box).resize(
        (round(asked.width * scale), round(asked.height * scale)), Image.Resampling.BICUBIC
    )
    return np.asarray(region.see(zoomed, BUDGET).image)


def token_grid(picture: np.ndarray) -> Grid:
    """Rows and columns of visual tokens of a picture."""
    return picture.shape[0] // TOKEN_SIZE, picture.shape[1] // TOKEN_SIZE


def encode_pictures(visual: Any, pictures: list[np.ndarray]) -> torch.Tensor:
    """Features (total visual tokens, hidden) of pictures of any allowed sizes, in their order.

    Views (all of one size) go as one batch without a mask; the others in two padded batches of similar sizes.
    """
    num_patches = [picture.shape[0] * picture.shape[1] // PATCH_SIZE**2 for picture in pictures]
    views = [
        i for i, picture in enumerate(pictures) if picture.shape[:2] == (world.VIEW_SIZE, world.VIEW_SIZE)
    ]
    rest = sorted(set(range(len(pictures))) - set(views), key=lambda i: (num_patches[i], i))
    half = math.ceil(len(rest) / 2)
    groups = [group for group in (views, rest[:half], rest[half:]) if group]
    pieces: list[torch.Tensor | None] = [None] * len(pictures)
    for group in groups:
        features = _encode_group(visual, [pictures[i] for i in group])
        sizes = [num_patches[i] // MERGE_SIZE**2 for i in group]
        for i, piece in zip(group, features.split(sizes)):
            pieces[i] = piece
    return torch.cat([piece for piece in pieces if piece is not None])


def _encode_group(visual: Any, pictures: list[np.ndarray]) -> torch.Tensor:
    """Features (total visual tokens, hidden) of one padded batch."""
    lengths = [picture.shape[0] * picture.shape[1] // PATCH_SIZE**2 for picture in pictures]
    length = math.ceil(max(lengths) / _PATCH_BUCKET) * _PATCH_BUCKET
    batch = math.ceil(len(pictures) / _BATCH_BUCKET) * _BATCH_BUCKET
    pixels = np.zeros((batch, length, 3 * PATCH_SIZE**2), np.uint8)
    places = np.zeros((batch, length, 2), np.int64)
    for row, picture in enumerate(pictures):
        pixels[row, : lengths[row]] = patches_of(picture)
        places[row, : lengths[row]] = _patch_places(
            picture.shape[0] // PATCH_SIZE, picture.shape[1] // PATCH_SIZE
        )
    filled = torch.tensor(lengths + [length] * (batch - len(pictures)))
    present = torch.arange(length)[None] < filled[:, None]
    mask = None if min(lengths) == length else present[:, None, None, :]
    merged = _forward_padded(visual, torch.from_numpy(pixels), torch.from_numpy(places), mask)
    keep = present[: len(pictures), :: MERGE_SIZE**2]
    return merged[: len(pictures)][keep]


def _forward_padded(
    visual: Any, pixels: torch.Tensor, places: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Features (batch, tokens, hidden) of pixels (batch, patches, 588) at places (batch, patches, 2)."""
    batch, length, _ = pixels.shape
    weight = (
        visual.patch_embed.proj.weight
    )  # (width, 3, 2, 14, 14): a still picture shows the same frame twice
    hidden = functional.linear(pixels.float() / 127.5 - 1, weight.sum(2).reshape(weight.shape[0], -1))
    cos, sin = visual.rotary_pos_emb(hidden, places.reshape(-1, 2))
    cos, sin = (wave.view(batch, 1, length, -1) for wave in (cos, sin))
    for block in visual.blocks:
        attention = block.attn
        packed = attention.qkv(block.norm1(hidden)).view(batch, length, 3, attention.num_heads, -1)
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # each (batch, heads, patches, head size)
        query, key = (_rotate(states, cos, sin).to(value.dtype) for states in (query, key))
        mixed = _attend(query, key, value, mask)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: torch.Tensor = visual.merger(hidden.reshape(batch * length, -1))
    return merged.view(batch, length // MERGE_SIZE**2, -1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Plain attention on (batch, heads, patches, head size): the fused kernel's backward is slow on a CPU."""
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(value.dtype) @ value


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


def patches_of(picture: np.ndarray) -> np.ndarray:
    """Patches (num, 588) in Qwen's order: the four patches of a visual token in a row, colour first."""
    rows, columns = token_grid(picture)
    blocks = picture.reshape(rows, MERGE_SIZE, PATCH_SIZE, columns, MERGE_SIZE, PATCH_SIZE, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns * MERGE_SIZE**2, -1)


@lru_cache(maxsize=64)
def _patch_places(rows: int, columns: int) -> np.ndarray:
    """Row and column (num, 2) of every patch, in the order of :func:`patches_of`."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    blocks = grid.reshape(rows // MERGE_SIZE, MERGE_SIZE, columns // MERGE_SIZE, MERGE_SIZE, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)
