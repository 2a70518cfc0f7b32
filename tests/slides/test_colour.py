"""Colours for the eye: an ICC profile is applied, a bad one changes nothing."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import ImageCms

from slideway.slides.colour import to_display_colour
from slideway.testing.slides import Pixels, paint_tissue


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return paint_tissue(64, 48)


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_primaries() -> bytes:
    """An RGB profile whose red and blue primaries are exchanged: conversion must be plain to see."""
    profile = bytearray(srgb())
    n_tags = struct.unpack(">I", profile[128:132])[0]
    at = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(n_tags)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    for_red, for_blue = profile[blue + 4 : blue + 12], profile[red + 4 : red + 12]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = for_red, for_blue
    return bytes(profile)


def test_srgb_stays_as_it_is_within_rounding(pixels: Pixels) -> None:
    assert np.abs(to_display_colour(pixels, srgb()).astype(int) - pixels).max() <= 1


def test_profile_is_applied(pixels: Pixels) -> None:
    shown = to_display_colour(pixels, swapped_primaries())
    assert shown.shape == pixels.shape
    assert shown.dtype == np.uint8
    assert np.abs(shown[..., ::-1].astype(int) - pixels).mean() < 8
    assert np.abs(shown.astype(int) - pixels).mean() > 8


@pytest.mark.parametrize(
    "profile",
    [None, b"", b"not a profile", srgb()[:200], b"\0" * 3000, srgb()[:16] + b"CMYK" + srgb()[20:], bytes(17_000_000)],
    ids=["none", "empty", "text", "cut", "zeros", "cmyk", "huge"],
)
def test_bad_profile_leaves_pixels_unchanged(pixels: Pixels, profile: bytes | None) -> None:
    assert (to_display_colour(pixels, profile) == pixels).all()


def test_empty_picture_stays_empty() -> None:
    assert to_display_colour(np.empty((0, 5, 3), np.uint8), srgb()).shape == (0, 5, 3)
