"""What a crop command is answered with: the paper's rule, and what the ablations put in its place."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image

from models.config import CropSourceName
from models.region import Box, Picture, PixelBudget, Size, View, look, look_blank, look_low_resolution

CropSource = Callable[[Image.Image, Box, PixelBudget, np.random.Generator], tuple[Picture, Box] | None]


def crop_from_original(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """The paper's rule: the region, cut from the original picture and zoomed."""
    view = View.of(Size(image.width, image.height), budget)
    return look(image, view.convert(box, "original"), budget), box


def crop_low_resolution(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """The fair control: the same region and number of tokens, but only what the model already saw."""
    view = View.of(Size(image.width, image.height), budget)
    return look_low_resolution(image, view.convert(box, "original"), budget), box


def crop_random_region(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """A region of the asked size at a uniformly random place: what is the choice of the region worth?"""
    view = View.of(Size(image.width, image.height), budget)
    x = float(rng.uniform(0, view.seen.width - box.width))
    y = float(rng.uniform(0, view.seen.height - box.height))
    moved = Box(x, y, x + box.width, y + box.height, "seen")
    return look(image, view.convert(moved, "original"), budget), moved


def crop_blank(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """Grey, of the size and number of tokens of the region: does the model use what it is shown?"""
    view = View.of(Size(image.width, image.height), budget)
    return look_blank(image, view.convert(box, "original"), budget), box


def no_crop(image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator) -> None:
    """Nothing is injected: the model goes on right after its crop command."""
    return


CROP_SOURCES: Mapping[CropSourceName, CropSource] = MappingProxyType(
    {
        "original": crop_from_original,
        "low_resolution": crop_low_resolution,
        "random_region": crop_random_region,
        "blank": crop_blank,
        "none": no_crop,
    }
)
