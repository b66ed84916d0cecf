"""Boxes, crops and zoom: the geometry of looking again (paper sections 3.2 and A.1).

The model sees a picture after *smart-resize*: both sides are multiples of ``factor`` (patch size x merge
size) and the area lies within a pixel budget. It writes boxes in pixels of that *seen* picture. The crop is
cut from the *original* picture, scaled by Eq. 4, and smart-resized in turn.

Where the paper is silent: corners that fall between original pixels are rounded outwards, so that a crop
never loses a part of what the box encloses.
"""

import hashlib
import io
import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from PIL import ExifTags, Image

from models.errors import RegionError

Space = Literal["original", "seen"]

# transformers' smart_resize refuses longer pictures.
MAX_ASPECT_RATIO = 200.0
_GREY = (128, 128, 128)


class BoxFault(StrEnum):
    """What can be wrong with a box that parsed."""

    INVERTED_BOX = "inverted_box"
    OUTSIDE_IMAGE = "outside_image"
    TOO_SMALL = "too_small"
    ASPECT_RATIO = "aspect_ratio"
    REPEATED_BOX = "repeated_box"


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels, both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise RegionError(
                f"Picture size {self.width}x{self.height}: both sides must be at least 1 pixel."
            )

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """How many pixels a picture may have when the model sees it; sides are multiples of ``factor``."""

    min_pixels: int
    max_pixels: int
    factor: int = 28

    def __post_init__(self) -> None:
        if not self.factor**2 <= self.min_pixels <= self.max_pixels:
            raise RegionError(
                f"Pixel budget {self.min_pixels}..{self.max_pixels}: needs factor^2 = {self.factor**2} "
                "<= min_pixels <= max_pixels."
            )


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle [x1, y1, x2, y2] in pixels of the named space, the second corner exclusive."""

    x1: float
    y1: float
    x2: float
    y2: float
    space: Space

    @property
    def width(self) -> float:
        """Horizontal extent in pixels; negative when inverted."""
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        """Vertical extent in pixels; negative when inverted."""
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        """Pixels enclosed; 0 for an inverted or empty box."""
        return max(self.width, 0.0) * max(self.height, 0.0)

    def corners(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2)."""
        return self.x1, self.y1, self.x2, self.y2

    def intersection(self, other: "Box") -> float:
        """Pixels that both boxes enclose. Raises RegionError when the spaces differ."""
        if self.space != other.space:
            raise RegionError(
                f"Cannot compare a box in {self.space!r} pixels with one in {other.space!r} pixels."
            )
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0.0) * max(height, 0.0)

    def iou(self, other: "Box") -> float:
        """Intersection over union, 0 to 1."""
        inside = self.intersection(other)
        union = self.area + other.area - inside
        return inside / union if union > 0 else 0.0

    def coverage_of(self, other: "Box") -> float:
        """Share of ``other`` that lies inside this box, 0 to 1."""
        return self.intersection(other) / other.area if other.area > 0 else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """One picture in its two spaces, and the only transform between them."""

    original: Size
    seen: Size

    @classmethod
    def of(cls, original: Size, budget: PixelBudget) -> "View":
        """The view of a picture under a pixel budget."""
        return cls(original=original, seen=smart_resize(original, budget))

    def size(self, space: Space) -> Size:
        """The picture's size in that space."""
        return self.original if space == "original" else self.seen

    def convert(self, box: Box, space: Space) -> Box:
        """The same rectangle in pixels of the other space (exact up to rounding of floats)."""
        if box.space == space:
            return box
        source, target = self.size(box.space), self.size(space)
        fx, fy = target.width / source.width, target.height / source.height
        return Box(box.x1 * fx, box.y1 * fy, box.x2 * fx, box.y2 * fy, space)

    def whole(self, space: Space) -> Box:
        """The box of the entire picture."""
        size = self.size(space)
        return Box(0, 0, size.width, size.height, space)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Picture:
    """An RGB picture exactly as an engine and the trainer receive it; equality is equality of pixels.

    ``file`` is a PNG or JPEG file of just these pixels where there was one, else empty.
    """

    image: Image.Image
    digest: str
    file: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, image: Image.Image, *, file: bytes = b"") -> "Picture":
        """Wrap a picture, converted to RGB; the digest covers size and raw pixels."""
        rgb = _rgb(image)
        header = f"{rgb.width}x{rgb.height}:".encode()
        return cls(image=rgb, digest=hashlib.sha256(header + rgb.tobytes()).hexdigest(), file=file)

    @property
    def size(self) -> Size:
        """Size in pixels."""
        return Size(self.image.width, self.image.height)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def smart_resize(size: Size, budget: PixelBudget) -> Size:
    """The size at which Qwen2.5-VL sees a picture: sides multiples of ``factor``, area within the budget.

    Follows the published rule of Qwen2-VL's image processor, and is a fixed point: a resized size maps to
    itself, so the engine's processor leaves a seen picture alone. Raises RegionError when one side is more
    than 200 times the other.
    """
    factor = budget.factor
    if max(size.width, size.height) > MAX_ASPECT_RATIO * min(size.width, size.height):
        raise RegionError(
            f"Picture {size.width}x{size.height}: one side is over {MAX_ASPECT_RATIO:.0f} times the other. "
            "Split or pad the picture."
        )
    width = max(factor, round(size.width / factor) * factor)
    height = max(factor, round(size.height / factor) * factor)
    if width * height > budget.max_pixels:
        beta = math.sqrt(size.area / budget.max_pixels)
        width = max(factor, math.floor(size.width / beta / factor) * factor)
        height = max(factor, math.floor(size.height / beta / factor) * factor)
    elif width * height < budget.min_pixels:
        beta = math.sqrt(budget.min_pixels / size.area)
        width = math.ceil(size.width * beta / factor) * factor
        height = math.ceil(size.height * beta / factor) * factor
    # A long strip at its least width is over the budget still: it gives up length (a departure from the
    # published rule, which would shrink such a picture again every time it is applied).
    width = min(width, max(factor, budget.max_pixels // (height * factor) * factor))
    height = min(height, max(factor, budget.max_pixels // (width * factor) * factor))
    return Size(width, height)


def zoom_scale(area_ratio: float) -> float:
    """Eq. 4: magnification of a crop that takes ``area_ratio`` (0 to 1) of the original picture's area."""
    if area_ratio < 0.125:
        return 2.0
    if area_ratio >= 0.5:
        return 1.0
    return 2.0 - (area_ratio - 0.125) / 0.375


def see(image: Image.Image, budget: PixelBudget, *, file: bytes = b"") -> Picture:
    """The picture as the model sees it first: smart-resized, RGB.

    ``file`` is what it was decoded from; the result keeps it where it shows the same pixels to any reader.
    """
    size = Size(image.width, image.height)
    target = smart_resize(size, budget)
    is_same = bool(file) and target == size and _is_plain(file)
    return Picture.of(_resized(_rgb(image), target), file=file if is_same else b"")


def look(image: Image.Image, box: Box, budget: PixelBudget) -> Picture:
    """The zoomed crop of a box (in pixels of ``image``, space "original"), scaled by Eq. 4, then
    smart-resized.

    Raises RegionError for a box in seen pixels, or one that encloses no pixel of the picture.
    """
    size = Size(image.width, image.height)
    pixels, zoomed = snap_outwards(box, size), zoomed_size(box, size)
    region = image.crop((int(pixels.x1), int(pixels.y1), int(pixels.x2), int(pixels.y2)))
    return Picture.of(_resized(_rgb(region), smart_resize(zoomed, budget)))


def zoomed_size(box: Box, size: Size) -> Size:
    """The size that Eq. 4 gives to the crop of a box (original pixels) of a picture of ``size``, before it is
    smart-resized. Raises what :func:`look` does."""
    pixels = snap_outwards(box, size)
    scale = zoom_scale(pixels.area / size.area)
    return Size(max(1, round(int(pixels.width) * scale)), max(1, round(int(pixels.height) * scale)))


def won_by_rounding(box: Box, view: View, budget: PixelBudget) -> float:
    """How many times more pixels a crop of ``box`` has than Eq. 4 gives it within the budget: below 1 it lost
    some when its sides were rounded to multiples of ``budget.factor``, above 1 it won some.

    Over boxes of sizes without a preference the mean is near 1. Raises what :func:`look` does.
    """
    zoomed = zoomed_size(view.convert(box, "original"), view.original)
    within = min(max(zoomed.area, budget.min_pixels), budget.max_pixels)
    return smart_resize(zoomed, budget).area / within


def look_low_resolution(image: Image.Image, box: Box, budget: PixelBudget) -> Picture:
    """The fair control of :func:`look`: same size and tokens, but only pixels the model already saw.

    The picture is reduced to what the model sees and blown up again before the cut, so no detail is added.
    """
    view = View.of(Size(image.width, image.height), budget)
    seen = _resized(_rgb(image), view.seen)
    return look(seen.resize((image.width, image.height), Image.Resampling.BICUBIC), box, budget)


def look_blank(image: Image.Image, box: Box, budget: PixelBudget) -> Picture:
    """A grey picture of the size of :func:`look`'s crop: as many tokens, and nothing to see."""
    size = look(image, box, budget).size
    return Picture.of(Image.new("RGB", (size.width, size.height), _GREY))


def snap_outwards(box: Box, size: Size) -> Box:
    """The smallest box of whole pixels around ``box``, clipped to a picture of that size.

    Raises RegionError when nothing is left, or when the box is not in original pixels.
    """
    if box.space != "original":
        raise RegionError(
            f"A crop needs a box in original pixels, not {box.space!r}. Convert it with View.convert."
        )
    # 1e-6: a corner that the transform put a rounding error beyond a whole pixel belongs to that pixel.
    x1, y1 = max(0, math.floor(box.x1 + 1e-6)), max(0, math.floor(box.y1 + 1e-6))
    x2, y2 = min(size.width, math.ceil(box.x2 - 1e-6)), min(size.height, math.ceil(box.y2 - 1e-6))
    if x2 <= x1 or y2 <= y1:
        raise RegionError(
            f"Box {list(box.corners())} encloses no pixel of the {size.width}x{size.height} picture. "
            "Boxes are [x1, y1, x2, y2] with x1 < x2 and y1 < y2."
        )
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def find_fault(
    box: Box,
    view: View,
    earlier: tuple[Box, ...] = (),
    *,
    min_side: float,
    max_aspect_ratio: float,
    repeated_iou: float,
) -> BoxFault | None:
    """The first rule that a box breaks, or None. ``min_side`` is in pixels of the box's own space.

    "Redundant" (paper 3.3, undefined there) means an IoU of at least ``repeated_iou`` with an earlier
    accepted box.
    """
    size = view.size(box.space)
    if box.width <= 0 or box.height <= 0:
        return BoxFault.INVERTED_BOX
    if box.x1 < 0 or box.y1 < 0 or box.x2 > size.width or box.y2 > size.height:
        return BoxFault.OUTSIDE_IMAGE
    if min(box.width, box.height) < min_side:
        return BoxFault.TOO_SMALL
    if max(box.width, box.height) > max_aspect_ratio * min(box.width, box.height):
        return BoxFault.ASPECT_RATIO
    if any(box.iou(other) >= repeated_iou for other in earlier):
        return BoxFault.REPEATED_BOX
    return None


def _is_plain(file: bytes) -> bool:
    """True for a PNG or JPEG file that needs no conversion: one RGB picture, upright, opaque, 8 bits."""
    with Image.open(io.BytesIO(file)) as opened:
        return (
            opened.format in ("PNG", "JPEG")
            and opened.mode == "RGB"
            and "transparency" not in opened.info
            and getattr(opened, "n_frames", 1) == 1
            and "16B" not in str(opened.tile)
            and opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        )


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB; the picture itself where it is, for ``convert`` would copy every pixel of it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, target: Size) -> Image.Image:
    if (image.width, image.height) == (target.width, target.height):
        return image
    return image.resize((target.width, target.height), Image.Resampling.BICUBIC)
