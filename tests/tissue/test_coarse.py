"""Coarse looks: what they tell apart, and what must not change them."""

from __future__ import annotations

import cv2
import numpy as np

from slideway.testing.slides import paint_tissue
from slideway.tissue import CELLULARITY, LOOKS, describe_parts

GLASS = np.array([244, 243, 245], np.float32)


def coarse(pixels):
    return np.asarray(cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_AREA), np.uint8)


def test_parts_with_more_nuclei_are_more_cellular():
    tile = coarse(paint_tissue(896, 896, fills_all=True))
    tile[:112] = np.clip(tile[:112].astype(int) // 3 + np.array([150, 110, 130]), 0, 255)  # the upper half: pale
    looks = describe_parts(tile[None], glass=GLASS, parts=4)
    assert looks.shape == (1, 4, 4, LOOKS)
    assert looks[0, 2:, :, CELLULARITY].min() > looks[0, :2, :, CELLULARITY].max()


def test_glass_absorbs_nothing():
    tile = np.broadcast_to(GLASS.astype(np.uint8), (1, 224, 224, 3))
    assert np.abs(describe_parts(np.ascontiguousarray(tile), glass=GLASS, parts=4)).max() < 1e-3


def test_a_brighter_lamp_changes_nothing_that_matters():
    tile = coarse(paint_tissue(896, 896, fills_all=True))
    dimmed = np.rint(tile * 0.9).astype(np.uint8)
    bright, dim = (describe_parts(t[None], glass=g, parts=4) for t, g in ((tile, GLASS), (dimmed, GLASS * 0.9)))
    assert np.abs(bright - dim)[..., :4].max() < 0.02


def test_parts_are_described_where_they_lie():
    tile = np.full((224, 224, 3), 243, np.uint8)
    tile[56:112, 168:] = (120, 60, 140)
    looks = describe_parts(tile[None], glass=GLASS, parts=4)
    assert np.unravel_index(looks[0, :, :, CELLULARITY].argmax(), (4, 4)) == (1, 3)


def test_an_edge_that_does_not_divide_leaves_a_rim_out():
    assert describe_parts(np.zeros((2, 30, 30, 3), np.uint8), glass=GLASS, parts=4).shape == (2, 4, 4, LOOKS)
