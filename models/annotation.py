"""What a model looked at, as one picture: its boxes numbered in order, beside them the crops it was given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from models.region import Box, PixelBudget, Size, View
from models.trajectory import Trajectory

_MARGIN = 16  # pixels of the annotated picture, as all lengths here
_PICTURE_SIDE = 896
_CROP_SIDE = 320
_FONT_SIZE = 20
_BADGE_HEIGHT = 28
_LINE_WIDTH = 3
# Told apart by people with any colour vision (after Okabe and Ito), dark enough for white numbers.
_COLOURS = ("#0072b2", "#c04a00", "#007a5a", "#a8478b", "#5b4db2", "#8a5a00")


@dataclass(frozen=True, slots=True)
class _Placed:
    """A scaled picture and its top left corner on the paper."""

    image: Image.Image
    x: int
    y: int

    @property
    def right(self) -> int:
        return self.x + self.image.width

    @property
    def bottom(self) -> int:
        return self.y + self.image.height

    def corners_of(self, box: Box, seen: Size) -> tuple[float, float, float, float]:
        """Corners on the paper of a box in a picture that was seen at that size."""
        fx, fy = self.image.width / seen.width, self.image.height / seen.height
        return self.x + box.x1 * fx, self.y + box.y1 * fy, self.x + box.x2 * fx, self.y + box.y2 * fy


def annotate(trajectory: Trajectory, images: Sequence[Image.Image], budget: PixelBudget) -> Image.Image:
    """The question's pictures with every box that was answered by a crop, and those crops, numbered alike.

    ``images`` are the originals in the order of the prompt, ``budget`` is the one that the model saw them
    with. A refused box is not drawn: it showed the model nothing.
    """
    pictures = list(_column(images, _PICTURE_SIDE, x=_MARGIN, above=_MARGIN))
    beside = _MARGIN + max((picture.right for picture in pictures), default=0)
    given = [crop.picture.image for crop in trajectory.crops]
    crops = list(_column(given, _CROP_SIDE, x=beside, above=_MARGIN + _BADGE_HEIGHT))
    paper = _paper([*pictures, *crops])
    pen = ImageDraw.Draw(paper)
    for number, (span, crop) in enumerate(zip(trajectory.crops, crops, strict=True), start=1):
        original, picture = images[span.image - 1], pictures[span.image - 1]
        seen = View.of(Size(original.width, original.height), budget).seen
        _mark(pen, number, picture.corners_of(span.box, seen))
        _mark(pen, number, (crop.x, crop.y, crop.right, crop.bottom))
    return paper


def _column(images: Sequence[Image.Image], side: int, *, x: int, above: int) -> Iterator[_Placed]:
    """The pictures scaled to a longer side of ``side``, below each other with room ``above`` each."""
    y = 0
    for image in images:
        scale = side / max(image.width, image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        yield _Placed(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), x, y + above)
        y += above + size[1]


def _paper(everything: Sequence[_Placed]) -> Image.Image:
    width = max((placed.right for placed in everything), default=0) + _MARGIN
    height = max((placed.bottom for placed in everything), default=0) + _MARGIN
    paper = Image.new("RGB", (width, height), "white")
    for placed in everything:
        paper.paste(placed.image, (placed.x, placed.y))
    return paper


def _mark(pen: ImageDraw.ImageDraw, number: int, corners: tuple[float, float, float, float]) -> None:
    """A frame and, on its top left corner, a badge with its number; inside where there is no room above."""
    colour = _COLOURS[(number - 1) % len(_COLOURS)]
    pen.rectangle(corners, outline=colour, width=_LINE_WIDTH)
    left, top = corners[:2]
    top = top - _BADGE_HEIGHT if top >= _BADGE_HEIGHT else top
    text, font = str(number), ImageFont.load_default(_FONT_SIZE)
    width = max(_BADGE_HEIGHT, font.getbbox(text)[2] + _FONT_SIZE / 2)
    pen.rectangle((left, top, left + width, top + _BADGE_HEIGHT), fill=colour)
    pen.text((left + width / 2, top + _BADGE_HEIGHT / 2), text, fill="white", font=font, anchor="mm")
