import io

import numpy as np
import pytest
from PIL import Image

from models import png


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 5), (84, 56), (113, 37)])
def test_the_picture_comes_back(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = png.encode(Image.fromarray(noise))
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", size)
        opened.verify()
    assert (np.asarray(Image.open(io.BytesIO(data))) == noise).all()


def test_a_smooth_picture_is_packed():
    slope = np.linspace(0, 255, 300).astype(np.uint8)[:, None, None]
    assert len(png.encode(Image.fromarray(np.broadcast_to(slope, (300, 300, 3)).copy()))) < 5000
