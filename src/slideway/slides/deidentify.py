"""A copy of a slide that may travel whole: no label, no overview, no identifying tags, the same pixels and places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import DeidentifyError, UnreadableSlideError, WrongUseError
from slideway.core.slide import Slide
from slideway.slides.deidentify_output import (
    NAME_HEX,
    check_target,
    flush_to_disk,
    is_folder_wanted,
    write_fence,
    written_at_once,
)
from slideway.slides.opened import OpenedSlide, open_slide
from slideway.slides.reader import read_head

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COMPARED_PX = 256  # side of the square that is decoded from each level of slide and copy
_MPP_SLACK = 1e-9
# What is said of formats that are read and not written.
_REFUSED = {
    "mirax": "3DHISTECH MRXS hides the label picture and the slide's name among its data files",
    "kfbio": "KFB is a vendor's own format without a published layout",
    "kfb": "KFB is a vendor's own format without a published layout",
    "sdpc": "SDPC is a vendor's own format with a patient's record in its header",
    "tmap": "TMAP is a vendor's own format without a published layout",
    "zeiss": "Zeiss CZI spreads names and times over many parts of the file",
    "sakura": "Sakura SVSLIDE is a database with the label in it",
    "hamamatsu": "Hamamatsu VMS and VMU come in several files with a map of the whole glass",
    "png": "a plain picture is no scanner's slide",
    "jpeg": "a plain picture is no scanner's slide",
    "bmp": "a plain picture is no scanner's slide",
}
_PICTURES = {"png", "jpeg", "bmp"}


@dataclass(frozen=True)
class Deidentified:
    """A slide's copy without identifiers, and what was done.

    Attributes:
        path: The copy: a file, or a folder of DICOM instances.
        form: Format in OpenSlide's words.
        pixel_sha256: Over the stored tiles or frames; the same for slide and copy.
        removed: What went, in words, never its content.
        kept: What stayed, in words.
        checked: What was verified on the copy, in words.
        cautions: What a person must still look at.
        bytes_before: Size of the slide.
        bytes_after: Size of the copy.
    """

    path: Path
    form: str
    pixel_sha256: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    checked: tuple[str, ...]
    cautions: tuple[str, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _View:
    """What a reader says of a slide, and a square of each level."""

    slide: Slide
    squares: tuple[NDArray[np.uint8], ...]


_CAUTIONS = (
    "words burnt into the scanned picture, or written by hand on the glass inside the scanned area, are still there",
    "the tissue itself is still there: whoever has another slide of the same block may recognise it",
)


def deidentify_slide(slide: Path, out: Path, *, replace: bool = False, key: bytes | None = None) -> Deidentified:
    """Copy a slide without label, overview and identifying tags; stored pixels and places on the glass stay.

    The copy is verified before it gets its name: opened in the sandboxed reader, it has the same levels, resolution
    and stored tiles as the slide, and no label or overview.

    Args:
        slide: A TIFF of the kinds that docs/deidentify.md lists, a DICOM file, or a folder with a DICOM slide.
        out: A file, or a folder (one that is there, or a name without suffix): then the copy is named by the first
            16 hexadecimal digits of `pixel_sha256`. A DICOM slide always becomes a folder of that name in `out`.
        replace: Replace a file or folder that is already there.
        key: Secret that DICOM's UIDs are replaced with; None makes one that is forgotten. The same key gives the same
            UIDs, so that several slides of one study stay together.

    Raises:
        DeidentifyError: The format, or content of it, cannot be freed of identifiers with certainty.
        UnreadableSlideError: The slide cannot be read.
        WrongUseError: `out` is the slide itself, is already there, or does not fit the format.
        OutputError: `out` cannot be written.
    """
    before = _look_at(slide)
    if before.slide.vendor == "dicom":
        return _copy_dicom(slide, out, before, replace=replace, key=key)
    if not slide.is_dir() and read_head(slide, 4) in _TIFF_STARTS and before.slide.vendor != "zeiss":
        return _copy_tiff(slide, out, before, replace=replace)
    raise _refuse(slide.name, before.slide.vendor)


def _refuse(name: str, vendor: str) -> DeidentifyError:
    reason = _REFUSED.get(vendor, f"no way is known to write the format '{vendor}' anew without what identifies")
    how = (
        "save it again without metadata (for example exiftool -all=)"
        if vendor in _PICTURES
        else "convert the slide to DICOM or to a plain tiled TIFF (wsidicomizer and vips do that)"
    )
    return DeidentifyError(
        f"{name}: {reason}; {how}, then run this on the result, or send features instead of the slide"
    )


def _copy_tiff(slide: Path, out: Path, before: _View, *, replace: bool) -> Deidentified:
    from slideway.slides.deidentify_tiff import check_written, plan_tiff, write_tiff

    plan = plan_tiff(slide)
    target = out / f"{plan.pixel_sha256[:NAME_HEX]}{plan.suffix}" if is_folder_wanted(out) else out
    check_target(target, slide, replace=replace)
    with written_at_once(target, as_folder=False) as part:
        with write_fence(target.parent):
            write_tiff(slide, plan, part)
        check_written(part, plan)
        _compare(before, part)
        n_bytes = part.stat().st_size
    return Deidentified(
        path=target,
        form=before.slide.vendor,
        pixel_sha256=plan.pixel_sha256,
        removed=plan.removed,
        kept=plan.stays,
        checked=_checked(before),
        cautions=_CAUTIONS,
        bytes_before=slide.stat().st_size,
        bytes_after=n_bytes,
    )


def _copy_dicom(slide: Path, out: Path, before: _View, *, replace: bool, key: bytes | None) -> Deidentified:
    from slideway.slides.deidentify_dicom import plan_dicom, write_dicom

    if not is_folder_wanted(out):
        raise WrongUseError(f"{out.name}: a DICOM slide is a folder of files; give a folder as OUT")
    plan = plan_dicom(slide, key)
    target = out / plan.pixel_sha256[:NAME_HEX]
    check_target(target, slide, replace=replace)
    with written_at_once(target, as_folder=True) as part:
        with write_fence(target.parent):
            write_dicom(plan, part)
        flush_to_disk(part)
        if plan_dicom(part, key).pixel_sha256 != plan.pixel_sha256:
            raise DeidentifyError("the frames that were written are not those of the slide; run it again")
        _compare(before, part)
        n_bytes = sum(file.stat().st_size for file in part.iterdir())
    return Deidentified(
        path=target,
        form="dicom",
        pixel_sha256=plan.pixel_sha256,
        removed=plan.removed,
        kept=plan.stays,
        checked=_checked(before),
        cautions=(*plan.cautions, *_CAUTIONS),
        bytes_before=plan.bytes_before,
        bytes_after=n_bytes,
    )


def _look_at(path: Path) -> _View:
    with open_slide(path) as opened:
        return _View(opened.slide, tuple(_read_square(opened, level) for level in range(len(opened.slide.levels))))


def _read_square(opened: OpenedSlide, level: int) -> NDArray[np.uint8]:
    """Read a square from the middle of a level; smaller where the level is smaller."""
    size = opened.slide.levels[level]
    width, height = min(_COMPARED_PX, size.width_px), min(_COMPARED_PX, size.height_px)
    return opened.read_region(level, (size.width_px - width) // 2, (size.height_px - height) // 2, width, height)


def _compare(before: _View, copy: Path) -> None:
    """Hold the copy against the slide, both as the reader sees them.

    Raises:
        DeidentifyError: They differ in anything but what should be gone.
    """
    try:
        after = _look_at(copy)
    except UnreadableSlideError as error:
        raise DeidentifyError(
            f"{before.slide.name}: without its identifying parts this slide can no longer be read ({error.code}); "
            "nothing was written. Convert it to a plain tiled TIFF or to DICOM, then run this on the result"
        ) from error
    differences = [words for words, facts in _facts(before.slide).items() if _facts(after.slide)[words] != facts]
    if not _same_mpp(before.slide, after.slide):
        differences.append("microns per pixel")
    if {"label", "macro"} & set(after.slide.side_images):
        differences.append("a label or overview that is still there")
    if not differences and not all(map(np.array_equal, before.squares, after.squares)):
        differences.append("pixels")
    if differences:
        raise DeidentifyError(
            f"{before.slide.name}: the copy would differ from the slide in {', '.join(differences)}; nothing was "
            "written. Convert the slide to a plain tiled TIFF or to DICOM, then run this on the result"
        )


def _facts(slide: Slide) -> dict[str, Any]:
    return {
        "format": slide.vendor,
        "levels": slide.levels,
        "objective": slide.objective_power,
        "colour profile": slide.has_icc_profile,
    }


def _same_mpp(one: Slide, other: Slide) -> bool:
    a, b = one.resolution.mpp, other.resolution.mpp
    return a == b if a is None or b is None else abs(a - b) <= _MPP_SLACK * a


def _checked(view: _View) -> tuple[str, ...]:
    mpp, count = view.slide.resolution.mpp, len(view.slide.levels)
    scale = f"{mpp:.4g} µm/px" if mpp else "no microns per pixel, as in the slide"
    return (
        f"opens in the sandboxed reader with the same {count} level{'s' if count > 1 else ''} and {scale}",
        "every stored tile is the same, byte for byte",
        "no label and no overview image",
    )
