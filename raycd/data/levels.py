"""Grey pictures of more than 8 bits, integers or floats, scaled to 8 bits.

Pillow clips their levels at 255 where it converts them: a float TIFF from 0 to 1 would silently
become black.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_FLOATS, _INTEGERS = (1, 255, 65_535), (255, 65_535, 2**32 - 1)  # what may be white
_SLACK = 1 / 16  # of white: floats that were resampled go a little beyond it

# Big-endian TIFFs that Pillow unpacks and does not register: read as their little-endian twins.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 1, (1,), 1, (32,), ()), ("I", "I;32B"))


def to_grey(image: Image.Image) -> Image.Image:
    """Convert a loaded picture of mode I or F to L, or to LA where one level is transparent.

    Sixteen bits, and the twelve of a TIFF, are scaled as declared. Of 32 bits and floats the range
    of the levels decides which level is white: about 1 (floats), 255, 65,535 or all 32 bits.

    Raises ValueError where the levels do not decide that, or some are NaN.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    levels_HW = np.asarray(image)
    if image.mode.startswith("I;16"):
        white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65_535
    else:
        if image.mode == "I" and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) == (1,):
            levels_HW = levels_HW.view(np.uint32)
        white = _white(levels_HW)
    scaled_HW = levels_HW.astype(np.float32)
    np.clip(scaled_HW, 0, white, out=scaled_HW)
    scaled_HW *= 255 / white
    grey_HW = np.rint(scaled_HW, out=scaled_HW).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        grey_HW = 255 - grey_HW
    grey = Image.fromarray(grey_HW)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(levels_HW == transparent, 0, 255).astype(np.uint8)))
    return grey


def _white(levels_HW: NDArray[np.generic]) -> int:
    low, high = float(levels_HW.min()), float(levels_HW.max())
    possible = _FLOATS if levels_HW.dtype.kind == "f" else _INTEGERS
    for white in possible:
        # A picture whose brightest level is below a sixteenth of white would come out nearly black
        bright = high >= white * _SLACK or white == possible[0]
        if bright and -white * _SLACK <= low and high <= white * (1 + _SLACK):
            return white
    scales = ", ".join(f"{white:,}" for white in possible)
    raise ValueError(
        f"its levels go from {low:g} to {high:g}, which fits none of the scales from 0 to {scales}"
    )
