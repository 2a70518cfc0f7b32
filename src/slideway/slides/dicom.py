"""DICOM whole slide images, as one file or as a folder, through wsidicom (the optional extra `dicom`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import (
    BrokenSlideError,
    MissingReaderError,
    SlideTooLargeError,
    SlidewayError,
    UnknownFormatError,
    UnreadableSlideError,
)
from slideway.core.slide import Resolution, Slide
from slideway.slides.openslide import CACHE_BYTES, levels_from, on_white
from slideway.slides.reader import PARSER_ERRORS, read_head
from slideway.slides.tiff import MAX_SIDE_PX, MAX_STORED_TILE_PX, NO_RESOLUTION, checked_resolution

MAX_FOLDER_FILES = 10_000  # one slide in single frames of a whole concatenation stays far below
_WSI_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage, PS3.4 B.5

# Attributes that identify a patient, a person, a place or a moment; those of the VL WSI IOD in PS3.15 table E.1-1.
_IDENTIFYING = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "OtherPatientIDs",
    "PatientComments",
    "EthnicGroup",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "SeriesDate",
    "SeriesTime",
    "ContentDate",
    "ContentTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "StudyDescription",
    "SeriesDescription",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "PhysiciansOfRecord",
    "OperatorsName",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "DeviceSerialNumber",
    "ContainerIdentifier",
    "SpecimenDescriptionSequence",
    "BarcodeValue",
    "LabelText",
    "ImageComments",
    "AdmissionID",
    "RequestAttributesSequence",
    "ClinicalTrialSubjectID",
)
_HEADER_TAGS = [
    "SOPClassUID",
    "ImageType",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "Columns",
    "Rows",
    "SharedFunctionalGroupsSequence",
    "OpticalPathSequence",
    "Manufacturer",
    "ManufacturerModelName",
    *_IDENTIFYING,
]


@dataclass(frozen=True)
class _Instance:
    """One DICOM file of a slide and the attributes that matter here."""

    path: Path
    header: Any

    @property
    def series(self) -> str:
        return str(self.header.get("SeriesInstanceUID", ""))

    @property
    def flavour(self) -> str:
        """VOLUME, LABEL, OVERVIEW or THUMBNAIL: the third value of Image Type, PS3.3 C.8.12.4.1.1."""
        image_type = list(self.header.get("ImageType") or [])
        return str(image_type[2]) if len(image_type) > 2 else "VOLUME"

    @property
    def width_px(self) -> int:
        return int(self.header.get("TotalPixelMatrixColumns") or 0)

    @property
    def height_px(self) -> int:
        return int(self.header.get("TotalPixelMatrixRows") or 0)


class DicomReader:
    """Reads one DICOM slide; given one file, the other files of the same series in its folder belong to it."""

    name: ClassVar[str] = "dicom"

    @classmethod
    def score(cls, path: Path) -> int:
        """Claim DICOM; without wsidicom so little that OpenSlide's own DICOM driver goes first."""
        try:
            is_dicom = any(map(_is_dicom, _files_in(path))) if path.is_dir() else _is_dicom(path)
        except (OSError, SlidewayError):
            return 0
        if not is_dicom:
            return 0
        return 90 if importlib.util.find_spec("wsidicom") else 10

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            from wsidicom import WsiDicom
            from wsidicom.config import Settings
        except ImportError as error:
            raise MissingReaderError(
                f"{path.name}: reading this DICOM slide needs wsidicom; install it with pip install 'slideway[dicom]'"
            ) from error
        self._errors: tuple[type[Exception], ...] = (*PARSER_ERRORS, *_library_errors())
        instances = _choose_series(path)
        self._base = max((i for i in instances if i.flavour == "VOLUME"), key=lambda i: i.width_px)
        if not (0 < self._base.width_px <= MAX_SIDE_PX and 0 < self._base.height_px <= MAX_SIDE_PX):
            raise SlideTooLargeError(
                f"{path.name}: the header declares {self._base.width_px:,} × {self._base.height_px:,} px; "
                f"the limit is {MAX_SIDE_PX:,} px a side"
            )
        for instance in instances:
            _check_frame_size(path, instance)
        try:
            settings = Settings(
                level_scale_tolerance=0.1,  # small levels are rounded to whole pixels, and their spacing with them
                decoded_frame_cache_size=CACHE_BYTES,
                encoded_frame_cache_size=CACHE_BYTES // 4,
            )
            self._wsi = WsiDicom.open([instance.path for instance in instances], settings=settings)
            self._levels = sorted(self._wsi.levels, key=lambda level: level.level)
        except NotImplementedError as error:
            raise UnknownFormatError(
                f"{path.name}: wsidicom reads no DICOM slide of this kind ({self._cause(error)})"
            ) from error
        except self._errors as error:
            raise BrokenSlideError(
                f"{path.name}: the DICOM slide is cut off or contradicts itself ({self._cause(error)}); export it again"
            ) from error

    def describe(self) -> Slide:
        """Describe the slide from the attributes of its finest level."""
        header = self._base.header
        side_images = self._side_images()
        identifiers = [name for name in _IDENTIFYING if _is_filled(header.get(name))]
        return Slide(
            name=self._path.name,
            vendor="dicom",
            reader=self.name,
            levels=levels_from(tuple((level.size.width, level.size.height) for level in self._levels)),
            resolution=_find_resolution(header),
            scanner=f"{header.get('Manufacturer', '')} {header.get('ManufacturerModelName', '')}".strip(),
            objective_power=_objective_power(header),
            side_images=side_images,
            identifiers=tuple(sorted([*identifiers, *(f"{name} image" for name in side_images)])),
            has_icc_profile=self.icc_profile() is not None,
        )

    def read_region(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Read a rectangle of one level; see `SlideReader.read_region`."""
        stored = self._levels[level]
        region = np.full((height_px, width_px, 3), 255, np.uint8)
        x0, x1 = max(x_px, 0), min(x_px + width_px, int(stored.size.width))
        y0, y1 = max(y_px, 0), min(y_px + height_px, int(stored.size.height))
        if x0 >= x1 or y0 >= y1:
            return region
        try:
            cut = self._wsi.read_region((x0, y0), stored.level, (x1 - x0, y1 - y0))
        except self._errors as error:
            raise BrokenSlideError(
                f"{self._path.name}: a region cannot be decoded ({self._cause(error)}); export the slide again"
            ) from error
        region[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = on_white(cut)
        return region

    def read_side_image(self, name: str) -> NDArray[np.uint8]:
        """Read `label` or `macro` (DICOM's overview); KeyError when the slide has none."""
        if name not in self._side_images():
            raise KeyError(name)
        try:
            return on_white(self._wsi.read_label() if name == "label" else self._wsi.read_overview())
        except self._errors as error:
            raise BrokenSlideError(
                f"{self._path.name}: its {name} image cannot be decoded ({self._cause(error)}); export the slide again"
            ) from error

    def icc_profile(self) -> bytes | None:
        """Return the ICC profile of the first optical path, if any."""
        paths = self._base.header.get("OpticalPathSequence") or ()
        profile = paths[0].get("ICCProfile") if paths else None
        return bytes(profile) if profile else None

    def close(self) -> None:
        """Release the files."""
        self._wsi.close()

    def _side_images(self) -> tuple[str, ...]:
        held = {"label": self._wsi.labels, "macro": self._wsi.overviews}
        return tuple(name for name, images in held.items() if images)

    def _cause(self, error: BaseException) -> str:
        folder = self._path if self._path.is_dir() else self._path.parent
        return str(error).replace(f"{folder}", "").strip() or type(error).__name__


def _library_errors() -> Iterable[type[Exception]]:
    from pydicom.errors import InvalidDicomError
    from wsidicom import errors

    yield InvalidDicomError
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, Exception):
            yield value


def _is_dicom(path: Path) -> bool:
    return read_head(path, 132)[128:] == b"DICM"  # a neighbour that may not be read is no part of the slide


def _files_in(folder: Path) -> list[Path]:
    """Files directly in a folder, in order of name; pipes and devices left out."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if len(files) > MAX_FOLDER_FILES:
        raise UnreadableSlideError(
            f"{folder.name}: more than {MAX_FOLDER_FILES:,} files in one folder; give a folder that holds one slide"
        )
    return files


def _choose_series(path: Path) -> list[_Instance]:
    """Collect the files of the one slide that `path` means.

    Raises:
        UnknownFormatError: DICOM, but no whole slide image.
        UnreadableSlideError: A folder holds several slides.
    """
    is_folder = path.is_dir()
    files = [file for file in _files_in(path if is_folder else path.parent) if _is_dicom(file)]
    found = [instance for file in files if (instance := _read_header(file)) is not None]
    if is_folder:
        series = {instance.series for instance in found if instance.flavour == "VOLUME"}
        if len(series) > 1:
            raise UnreadableSlideError(
                f"{path.name}: the folder holds {len(series)} DICOM slides (series); give one of their files, or make "
                "a folder for each"
            )
    else:
        given = _read_header(path)
        series = {given.series} if given is not None else set()
    chosen = [instance for instance in found if instance.series in series]
    if not any(instance.flavour == "VOLUME" for instance in chosen):
        raise UnknownFormatError(
            f"{path.name}: this is DICOM, but no whole slide image (VL Whole Slide Microscopy) with a VOLUME level"
        )
    return chosen


def _read_header(path: Path) -> _Instance | None:
    """Read the attributes of a whole slide image; None for other DICOM and for damaged headers."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        is_wsi = str(header.get("SOPClassUID", "")) == _WSI_STORAGE
    except (*PARSER_ERRORS, InvalidDicomError):
        return None
    return _Instance(path, header) if is_wsi else None


def _check_frame_size(path: Path, instance: _Instance) -> None:
    frame_px = int(instance.header.get("Columns") or 0) * int(instance.header.get("Rows") or 0)
    if frame_px > MAX_STORED_TILE_PX:
        raise SlideTooLargeError(
            f"{path.name}: a frame declares {frame_px:,} pixels, the limit is {MAX_STORED_TILE_PX:,}"
        )


def _find_resolution(header: Any) -> Resolution:
    """Pixel Spacing (0028,0030) is in millimetres, rows first."""
    try:
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        spacing_mm = [float(value) for value in measures.PixelSpacing]
        return checked_resolution(1000 * sum(spacing_mm) / len(spacing_mm), "DICOM Pixel Spacing")
    except PARSER_ERRORS:
        return NO_RESOLUTION


def _objective_power(header: Any) -> float | None:
    try:
        return float(header.OpticalPathSequence[0].ObjectiveLensPower)
    except PARSER_ERRORS:
        return None


def _is_filled(value: Any) -> bool:
    return value is not None and str(value).strip() not in ("", "[]", "<Sequence, length 0>")
