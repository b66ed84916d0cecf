"""Boxes drawn into pictures."""

from PIL import Image

from models.evaluation.overlay import draw_boxes
from models.region import Size


def test_boxes_are_drawn_where_they_were_asked_for() -> None:
    picture = Image.new("RGB", (400, 200))
    drawn = draw_boxes(picture, [((10, 10, 50, 40), True), ((90, 45, 60, 20), False)], seen=Size(100, 50))
    # Four drawn pixels per seen pixel: the second box is inverted, and drawn all the same.
    assert drawn.getpixel((40, 100)) == drawn.getpixel((200, 100)) == (255, 212, 0)
    assert drawn.getpixel((240, 150)) == drawn.getpixel((360, 150)) == (255, 122, 112)
    assert drawn.getpixel((120, 100)) == (0, 0, 0)
    assert picture.getbbox() is None, "the picture itself is left alone"
