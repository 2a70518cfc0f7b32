"""Show stored pixels in the colours the scanner meant; only for eyes, never for an encoder."""

from __future__ import annotations

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 16_000_000  # scanners' profiles stay under 4 MB


def to_display_colour(pixels: NDArray[np.uint8], icc_profile: bytes | None) -> NDArray[np.uint8]:
    """Convert (height, width, 3) RGB from a slide's ICC profile to sRGB.

    Without a profile, or with one that is damaged or not for RGB, the pixels come back unchanged.

    Source:
        Why encoders never see this: docs/decisions/0002-colour.md.
    """
    transform = _build_transform(icc_profile) if icc_profile and len(icc_profile) <= _MAX_PROFILE_BYTES else None
    if transform is None or pixels.size == 0:
        return pixels
    shown = ImageCms.applyTransform(Image.fromarray(pixels), transform)
    return np.asarray(shown, np.uint8) if shown is not None else pixels


@functools.lru_cache(maxsize=4)
def _build_transform(icc_profile: bytes) -> ImageCms.ImageCmsTransform | None:
    if icc_profile[16:20] != b"RGB " or icc_profile[36:40] != b"acsp":  # ICC.1:2022, table 15: the profile header
        return None
    try:
        scanner = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        return ImageCms.buildTransform(scanner, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
