"""Plant the faults of real slides into clean pictures: ink, dust, bubbles, edges, tints, defocus."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Bools = NDArray[np.bool_]

# Share of red, green and blue light that one layer of ink lets through, read off photographs of felt pens on glass.
INKS = {
    "blue": (0.15, 0.25, 0.75),
    "light-blue": (0.45, 0.60, 0.90),
    "green": (0.10, 0.50, 0.30),
    "light-green": (0.50, 0.80, 0.60),
    "black": (0.10, 0.10, 0.11),
    "grey-black": (0.35, 0.34, 0.36),
    "red": (0.90, 0.12, 0.22),
}


def draw_pen(image: Image, ink: str, *, mpp: float, seed: int, width_um: float = 700) -> tuple[Image, Bools]:
    """Two curved strokes across the whole picture, with uneven cover and soft rims."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    cover = np.zeros((height, width), dtype=np.float32)
    for _ in range(2):
        knots = rng.uniform(0, 1, (4, 2)) * (width, height)
        t = np.linspace(0, 1, 80)[:, None]
        curve = (
            (1 - t) ** 3 * knots[0] + 3 * t * (1 - t) ** 2 * knots[1] + 3 * t**2 * (1 - t) * knots[2] + t**3 * knots[3]
        )
        cv2.polylines(cover, [curve.astype(np.int32)], False, 1.0, max(2, round(width_um / mpp)), cv2.LINE_AA)
    streaks = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 60 / mpp)
    cover = cv2.GaussianBlur(cover, (0, 0), max(0.6, 20 / mpp)) * (1 + 0.15 * streaks / streaks.std())
    through = np.power(np.array(INKS[ink], dtype=np.float32), np.clip(cover, 0, 1.5)[..., None])
    return to_bytes(image * through), cover > 0.5


def fold(image: Image, tissue: Bools, *, mpp: float, seed: int, width_um: float = 70) -> tuple[Image, Bools]:
    """Three bands of about 2 mm in which the neighbouring tissue lies on top of the tissue."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    cover = np.zeros((height, width), dtype=np.float32)
    ys, xs = np.nonzero(cv2.erode(tissue.astype(np.uint8), np.ones((5, 5), np.uint8)))
    for at in rng.integers(0, len(xs), 3):
        bearing = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.06, 20))
        steps = np.stack([np.cos(bearing), np.sin(bearing)], axis=1) * 100 / mpp
        walk = np.cumsum(steps, axis=0) - steps.sum(axis=0) / 2 + (xs[at], ys[at])
        cv2.polylines(cover, [walk.astype(np.int32)], False, 1.0, max(1, round(width_um / mpp)), cv2.LINE_AA)
    where = (cover > 0.5) & tissue
    shift = max(1, round(120 / mpp))
    above = np.maximum(np.roll(image, (shift, shift), axis=(0, 1)), 1) / np.percentile(image.reshape(-1, 3), 95, axis=0)
    lit = np.power(np.minimum(above, 1), (cover * tissue)[..., None])
    return to_bytes(image * lit), where


def strew_dust(image: Image, *, mpp: float, seed: int, count: int = 60) -> tuple[Image, Bools]:
    """Grey specks of 20–120 µm and a few grey hairs."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    cover = np.zeros((height, width), dtype=np.float32)
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        axes = (max(1, round(rng.uniform(10, 60) / mpp)), max(1, round(rng.uniform(10, 60) / mpp)))
        cv2.ellipse(cover, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, float(rng.uniform(0.3, 1)), -1)
    for _ in range(4):
        start = rng.uniform(0, 1, 2) * (width, height)
        walk = start + np.cumsum(rng.normal(0, 60 / mpp, (20, 2)) + rng.normal(0, 60 / mpp, 2), axis=0)
        cv2.polylines(cover, [walk.astype(np.int32)], False, 0.7, max(1, round(12 / mpp)), cv2.LINE_AA)
    through = np.power(np.array([0.35, 0.34, 0.33], dtype=np.float32), cv2.GaussianBlur(cover, (0, 0), 0.7)[..., None])
    return to_bytes(image * through), cover > 0.2


def blow_bubbles(image: Image, *, mpp: float, seed: int, count: int = 6) -> tuple[Image, Bools]:
    """Rings with a dark rim, a bright inner rim and a faint rainbow."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    out, where = image.astype(np.float32), np.zeros((height, width), dtype=bool)
    for _ in range(count):
        radius = rng.uniform(150, 1200) / mpp
        gap = np.hypot(xs - rng.uniform(0, width), ys - rng.uniform(0, height)) - radius
        for channel, shift in enumerate((-0.3, 0.0, 0.3)):
            rim = np.exp(-(((gap + shift) / max(1.0, 14 / mpp)) ** 2))
            inner = np.exp(-(((gap + shift + 30 / mpp) / max(1.0, 14 / mpp)) ** 2))
            out[..., channel] = out[..., channel] * (1 - 0.6 * rim) + 25 * inner
        where |= np.abs(gap) < 50 / mpp
    return to_bytes(out), where


def lay_coverslip_edge(image: Image, *, mpp: float, seed: int) -> tuple[Image, Bools]:
    """Straight lines across the slide, dark with bright companions, and a yellowish film of mountant beyond one."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    out, where = image.astype(np.float32), np.zeros((height, width), dtype=bool)
    for share in (rng.uniform(0.02, 0.1), rng.uniform(0.9, 0.98)):
        gap = xs - share * width + (ys - height / 2) * rng.uniform(-0.03, 0.03)
        line = np.exp(-((gap / max(1.0, 20 / mpp)) ** 2))
        fringe = np.exp(-(((gap - 40 / mpp) / max(1.0, 20 / mpp)) ** 2))
        out = out * (1 - 0.7 * line[..., None]) + 20 * fringe[..., None]
        where |= np.abs(gap) < 80 / mpp
        beyond = gap < 0 if share < 0.5 else gap > 0
        out[beyond] *= (0.985, 0.975, 0.94)
        where |= beyond
    return to_bytes(out), where


def lay_control_strip(image: Image, *, mpp: float, seed: int) -> tuple[Image, Bools]:
    """A printed strip of even colour patches, pink and purple among them, on one short side."""
    rng = np.random.default_rng(seed)
    out, where = image.astype(np.float32), np.zeros(image.shape[:2], dtype=bool)
    edge, y = max(3, round(900 / mpp)), round(100 / mpp)
    x = max(0, image.shape[1] - edge - round(100 / mpp))
    for colour in ((225, 160, 200), (150, 90, 160), (90, 140, 200), (200, 190, 60), (120, 120, 120), (240, 200, 220)):
        if y + edge >= image.shape[0]:
            break
        out[y : y + edge, x : x + edge] = np.array(colour) + rng.normal(
            0, 1.0, (edge, min(edge, image.shape[1] - x), 3)
        )
        where[y : y + edge, x : x + edge] = True
        y += round(edge * 1.25)
    return to_bytes(out), where


def pad(image: Image, level: int, *, share: float = 0.15) -> tuple[Image, Bools]:
    """The scan as an island in an area that was never scanned."""
    margin = [max(1, round(length * share)) for length in image.shape[:2]]
    sides = (margin[0], margin[0] // 2, margin[1], margin[1] // 3)
    out = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=(level, level, level))
    where = np.ones(out.shape[:2], dtype=bool)
    where[sides[0] : sides[0] + image.shape[0], sides[2] : sides[2] + image.shape[1]] = False
    return np.asarray(out, dtype=np.uint8), where


def relight(image: Image, tint: tuple[float, float, float]) -> Image:
    """The same slide under another lamp."""
    return to_bytes(image * np.array(tint, dtype=np.float32))


def restain(image: Image, strength: float) -> Image:
    """The same slide stained paler or darker."""
    glass = np.percentile(image.reshape(-1, 3), 90, axis=0)
    return to_bytes(glass * np.power(np.maximum(image, 1) / glass, strength))


def shoot(image: Image, *, seed: int, noise: float = 2.0, quality: int = 75) -> Image:
    """With a sensor's noise and a JPEG's loss."""
    noisy = to_bytes(image + np.random.default_rng(seed).normal(0, noise, image.shape))
    return press(noisy, quality)


def press(image: Image, quality: int) -> Image:
    """Through JPEG and back."""
    _, code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def defocus(image: Image, radius_px: float) -> Image:
    """A disk of confusion, its rim anti-aliased by eightfold sampling."""
    reach = int(np.ceil(radius_px)) + 1
    fine = (np.arange((2 * reach + 1) * 8) + 0.5) / 8 - reach - 0.5
    disk = (fine[:, None] ** 2 + fine[None] ** 2 <= radius_px**2).astype(np.float32)
    kernel = disk.reshape(2 * reach + 1, 8, 2 * reach + 1, 8).mean(axis=(1, 3))
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT), dtype=np.uint8)


def to_bytes(image: NDArray[np.generic]) -> Image:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
