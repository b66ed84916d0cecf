"""Pixels of any mode as 8-bit RGB: Pillow's own conversion clips 16 bits to white and drops transparency."""

import numpy as np
from PIL import Image


def as_rgb(image: Image.Image, changes: list[str] | None = None) -> Image.Image:
    """The same picture in RGB: transparent parts on white, 16 bits per channel brought to 8. What is lost on
    the way is added to ``changes``.
    """
    changes = [] if changes is None else changes
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        high = pixels >> 8 if int(pixels.max(initial=0)) > 255 else pixels
        return Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "CMYK":
        changes.append("cmyk_to_rgb")
    elif image.mode == "F":
        changes.append("float_to_8_bit")
    elif image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema() != (255, 255):
            changes.append("alpha_on_white")
            white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
