"""Pictures with the boxes that a model asked for, numbered in the order of asking."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from models.region import Size

_ACCEPTED, _REFUSED = (255, 212, 0), (255, 122, 112)


def draw_boxes(
    image: Image.Image, boxes: Sequence[tuple[Sequence[float], bool]], *, seen: Size
) -> Image.Image:
    """A copy of a picture with numbered boxes: corners (x1, y1, x2, y2) in seen pixels, and whether accepted.

    ``seen`` is the size that the corners refer to. A box that reaches beyond the picture is cut off.
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    width = max(2, max(drawn.size) // 160)
    font = ImageFont.load_default(size=max(12, max(drawn.size) // 24))
    for number, (corners, is_accepted) in enumerate(boxes, start=1):
        x1, y1, x2, y2 = (
            value * factor
            for value, factor in zip(
                corners, (drawn.width / seen.width, drawn.height / seen.height) * 2, strict=True
            )
        )
        colour = _ACCEPTED if is_accepted else _REFUSED
        # Pillow draws no inverted box, and that is one of the ways to be refused.
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour, width=width)
        corner = (min(x1, x2), min(y1, y2))
        left, top, right, bottom = pen.textbbox(corner, str(number), font=font, anchor="ls")
        pen.rectangle((left - width, top - width, right + width, bottom + width), fill=colour)
        pen.text(corner, str(number), fill=(0, 0, 0), font=font, anchor="ls")
    return drawn
