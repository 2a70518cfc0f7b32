"""A DICOM slide copied without label, overview and identifying attributes; frames go over byte for byte.

Follows the Basic Application Level Confidentiality Profile (PS3.15, E.2), turned round: instead of taking away the
attributes of its table, only those are written that the VL Whole Slide Microscopy Image IOD (PS3.3, A.32.8) needs to
show pixels in their place. Whatever a scanner, an archive or a later edition of the standard adds is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
import secrets
import struct
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slideway.core.errors import BrokenSlideError, DeidentifyError
from slideway.slides.deidentify_streams import clean_profile, hash_stored
from slideway.slides.dicom import _choose_series  # the same files that the reader takes for the slide
from slideway.slides.reader import PARSER_ERRORS

_SECRET_BYTES = 32
_COPY_BYTES = 1 << 20
_MAX_VALUE = "32 MB"  # larger values are not read with the header; nothing that is kept is larger

# Numbers and defined words, kept wherever they stand. Source: PS3.3 C.8.12.4 (Whole Slide Microscopy Image),
# C.7.6.16/17 (functional groups, dimensions), C.8.12.5 (Optical Path), C.7.6.3 (Image Pixel).
_KEPT = frozenset({
    "SOPClassUID", "ImageType", "Modality", "InstanceNumber", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "BurnedInAnnotation", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "PresentationLUTShape", "RescaleIntercept", "RescaleSlope", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes",
    "TotalPixelMatrixOriginSequence", "XOffsetInSlideCoordinateSystem", "YOffsetInSlideCoordinateSystem",
    "ZOffsetInSlideCoordinateSystem", "SpecimenLabelInImage", "FocusMethod", "ExtendedDepthOfField",
    "NumberOfFocalPlanes", "DistanceBetweenFocalPlanes", "ImageOrientationSlide", "NumberOfOpticalPaths",
    "VolumetricProperties", "PositionReferenceIndicator", "DimensionOrganizationType",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionIndexPointer", "FunctionalGroupPointer",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence", "PixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", "WholeSlideMicroscopyImageFrameTypeSequence", "FrameType",
    "OpticalPathIdentificationSequence", "FrameContentSequence", "DimensionIndexValues", "InConcatenationNumber",
    "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber", "PlanePositionSlideSequence",
    "ColumnPositionInTotalImagePixelMatrix", "RowPositionInTotalImagePixelMatrix", "OpticalPathSequence",
    "IlluminationWaveLength", "IlluminationTypeCodeSequence", "IlluminationColorCodeSequence", "LensesCodeSequence",
    "LightPathFilterTypeStackCodeSequence", "ObjectiveLensPower", "ObjectiveLensNumericalAperture",
    "CondenserLensPower", "ColorSpace", "ContainerTypeCodeSequence", "RepresentativeFrameNumber",
})  # fmt: skip
_UIDS = frozenset({
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "DimensionOrganizationUID",
    "ConcatenationUID", "SOPInstanceUIDOfConcatenationSource", "PyramidUID",
})  # fmt: skip
_WRITTEN = _KEPT | _UIDS | {"ICCProfile", "OpticalPathIdentifier"}
# Required, may be empty (type 2).
_EMPTIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "ReferringPhysicianName", "AccessionNumber", "SeriesNumber",
)  # fmt: skip
# Required, may not be empty (type 1): what stands there instead.
_DUMMIES = {
    "ContentDate": "19000101",
    "ContentTime": "000000",
    "AcquisitionDateTime": "19000101000000",
    "DeviceSerialNumber": "REMOVED",
    "SoftwareVersions": "REMOVED",
}
_MAKERS = ("Manufacturer", "ManufacturerModelName")
_CODE_SCHEMES = {"SCT", "SRT", "DCM", "UCUM"}  # published ones; a local scheme may say anything
_NUMBER_VRS = {"US", "UL", "UV", "SS", "SL", "SV", "FL", "FD", "AT"}
_MOST_NUMBERS = 6  # of one attribute: Image Orientation (Slide)
_FRAME_TABLES = {"ExtendedOffsetTable", "ExtendedOffsetTableLengths"}  # eight bytes a frame
_DEFINED_WORD = re.compile(r"[A-Z0-9_ ]{0,16}")  # VR CS, PS3.5 6.2
_PLAIN_WORDS = re.compile(r"[A-Za-z0-9 .,()/&+\-]{1,64}")
_NUMBER = re.compile(r"\s*[-+]?[\d.]{1,24}([eE][-+]?\d{1,3})?\s*")

_METHOD = "Slideway: allow-list of the VL WSI IOD"


@dataclass(frozen=True)
class _Frames:
    """Where the pixels of a DICOM file lie.

    Attributes:
        start: First byte of the element Pixel Data, its tag.
        stop: Past its last byte; nothing behind is copied.
        sha256: Over its fragments.
    """

    start: int
    stop: int
    sha256: str


@dataclass(frozen=True)
class _PlannedInstance:
    """One file that will be written."""

    path: Path
    header: Any
    frames: _Frames


@dataclass(frozen=True)
class DicomPlan:
    """What will be written of a DICOM slide.

    Attributes:
        instances: Levels, and the thumbnail where there is one; headers already clean.
        pixel_sha256: sha256 over the sorted sha256s of the instances' sizes and frames.
        removed: What goes, in words, never its content.
        stays: What stays, in words.
        cautions: What a person must still look at.
        bytes_before: Size of all files of the slide.
    """

    instances: tuple[_PlannedInstance, ...]
    pixel_sha256: str
    removed: tuple[str, ...]
    stays: tuple[str, ...]
    cautions: tuple[str, ...]
    bytes_before: int


def plan_dicom(path: Path, key: bytes | None = None) -> DicomPlan:
    """Decide what of a DICOM slide may travel; reads every frame once.

    Args:
        path: A folder with one slide, or one of its files.
        key: Secret that new UIDs are made with; None makes one for this plan alone.

    Raises:
        DeidentifyError: Text is burnt into the pixels, or a frame carries text of its own.
        BrokenSlideError: A file contradicts itself.
    """
    cleaner = _Cleaner(key or secrets.token_bytes(_SECRET_BYTES))
    with _naming_damage(path.name):
        found = [(one.path, one.flavour) for one in _choose_series(path)]
    instances = []
    for file, flavour in found:
        if flavour in {"VOLUME", "THUMBNAIL"}:
            instance = _plan_instance(file, cleaner)
            if instance is not None:
                instances.append(instance)
        else:
            kind = flavour.lower() if flavour in {"LABEL", "OVERVIEW"} else "further"
            cleaner.removed[f"{kind} image"] = None
    digests = sorted(instance.frames.sha256 for instance in instances)
    cautions = ("the slide does not say whether text is burnt into its pixels",) if cleaner.is_unstated else ()
    return DicomPlan(
        tuple(instances),
        hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        removed=tuple(cleaner.removed),
        stays=("pixels, levels, spacing and place on the slide", *cleaner.stays),
        cautions=cautions,
        bytes_before=sum(file.stat().st_size for file, _ in found),
    )


def write_dicom(plan: DicomPlan, folder: Path) -> None:
    """Write the planned files; each is named by its new UID alone.

    Raises:
        DeidentifyError: A number is not of the form that DICOM asks for.
    """
    import pydicom

    for instance in plan.instances:
        target = folder / f"{instance.header.SOPInstanceUID}.dcm"
        try:
            with _silent_pydicom():
                pydicom.dcmwrite(target, instance.header, enforce_file_format=True)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise DeidentifyError(
                f"{instance.path.name}: it holds values that DICOM does not allow and cannot be written anew; "
                "export the slide again"
            ) from error
        with instance.path.open("rb") as source, target.open("ab") as out:
            source.seek(instance.frames.start)
            for content in _chunks(source, instance.frames.stop - instance.frames.start):
                out.write(content)


@contextlib.contextmanager
def _naming_damage(name: str) -> Iterator[None]:
    """Turn what pydicom raises on damaged bytes into the error that it is, and keep it silent."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with _silent_pydicom():
            yield
    except (*PARSER_ERRORS, InvalidDicomError, BytesLengthException) as error:
        raise BrokenSlideError(f"{name}: the DICOM file is cut off or damaged; export it again") from error


@contextlib.contextmanager
def _silent_pydicom() -> Iterator[None]:
    """Keep pydicom from warning of odd values: it repeats them, and they may name a patient."""
    log = logging.getLogger("pydicom")
    was_disabled = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


def _plan_instance(path: Path, cleaner: _Cleaner) -> _PlannedInstance | None:
    import pydicom

    with _naming_damage(path.name), path.open("rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=_MAX_VALUE)
        start = file.tell()
        if not _may_travel(header, path.name):
            cleaner.removed["thumbnail image with the label in it"] = None
            return None
        _check_syntax(header, path.name)
        cleaned = cleaner.clean_instance(header)
        return _PlannedInstance(path, cleaned, _find_frames(file, start, header, path.name))


def _may_travel(header: Any, name: str) -> bool:
    """Refuse a level with burnt-in text; leave a thumbnail of that kind out."""
    is_marked = "YES" in (header.get("BurnedInAnnotation"), header.get("SpecimenLabelInImage"))
    if is_marked and str(header.ImageType[2]) == "VOLUME":
        raise DeidentifyError(
            f"{name}: the slide says that text or the label is in its pixels (Burned In Annotation or Specimen Label "
            "In Image is YES), and pixels are never changed here; scan again without the label area"
        )
    return not is_marked


def _check_syntax(header: Any, name: str) -> None:
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_deflated or not syntax.is_little_endian:
        raise DeidentifyError(
            f"{name}: stored deflated or with the most significant byte first; convert it to Explicit VR Little Endian"
        )


class _Cleaner:
    """Writes headers anew with one secret, and notes what stayed and what went.

    Attributes:
        removed: Names of what went, in order.
        stays: Names of what stayed and is worth a word.
        is_unstated: A level does not say whether text is burnt in.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._paths: dict[str, str] = {}
        self._n_frames = 0
        self.removed: dict[str, None] = {}
        self.stays: dict[str, None] = {}
        self.is_unstated = False

    def clean_instance(self, header: Any) -> Any:
        """Make the header of one file: allowed attributes, new UIDs, empty or dummy values where one is required."""
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID

        self._n_frames = int(header.get("NumberOfFrames") or 1)
        cleaned = self._clean(header)
        self.is_unstated |= "BurnedInAnnotation" not in header
        for name in _EMPTIED:
            setattr(cleaned, name, None if name == "SeriesNumber" else "")
        for name, dummy in _DUMMIES.items():
            setattr(cleaned, name, dummy)
        for name in _MAKERS:
            words = str(header.get(name, ""))
            setattr(cleaned, name, words if _PLAIN_WORDS.fullmatch(words) else "REMOVED")
        self.stays["scanner's make and model"] = None
        self._describe_specimen(header, cleaned)
        self._state_removal(cleaned)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = cleaned.SOPClassUID
        meta.MediaStorageSOPInstanceUID = cleaned.SOPInstanceUID
        meta.TransferSyntaxUID = UID(str(header.file_meta.TransferSyntaxUID))
        cleaned.file_meta = meta
        return cleaned

    def _clean(self, dataset: Any) -> Any:
        """Copy what may be written of a dataset; other values are not even decoded."""
        from pydicom.datadict import keyword_for_tag
        from pydicom.dataset import Dataset

        cleaned = Dataset()
        for tag in sorted(dataset.keys()):
            name = keyword_for_tag(tag)
            if tag.is_private:
                self.removed["private attributes"] = None
            elif name not in _WRITTEN:
                self._note(name, dataset.get_item(tag))
            elif (value := self._clean_value(element := dataset[tag])) is not None:
                cleaned.add_new(tag, element.VR, value)
            else:
                self.removed[name] = None
        return cleaned

    def _clean_value(self, element: Any) -> Any:
        """Return what may be written of an element; None when nothing."""
        name = element.keyword
        if name in _UIDS:
            return self._new_uid(str(element.value))
        if name == "ICCProfile":
            return self._clean_colour(bytes(element.value or b""))
        if name == "OpticalPathIdentifier":
            return self._paths.setdefault(str(element.value), str(len(self._paths) + 1))
        if name in _FRAME_TABLES:
            content = bytes(element.value or b"")
            return content if element.VR == "OV" and len(content) == 8 * self._n_frames else None
        if element.VR == "SQ":
            clean_item = self._clean_code if name.endswith("CodeSequence") else self._clean
            items = [clean_item(item) for item in element.value]
            return [item for item in items if item is not None]
        return element.value if _is_harmless(element) else None

    def _clean_code(self, item: Any) -> Any:
        """Keep a code of a published scheme."""
        from pydicom.dataset import Dataset

        parts = [str(item.get(name, "")) for name in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
        if parts[1] not in _CODE_SCHEMES or not all(map(_PLAIN_WORDS.fullmatch, parts)):
            self.removed["codes of local schemes"] = None
            return None
        cleaned = Dataset()
        cleaned.CodeValue, cleaned.CodingSchemeDesignator, cleaned.CodeMeaning = parts
        return cleaned

    def _clean_colour(self, profile: bytes) -> bytes | None:
        cleaned = clean_profile(profile.rstrip(b"\0") if len(profile) % 2 else profile)
        if cleaned is not None:
            self.stays["colour profile"] = None
            self.removed["names and dates in the colour profile"] = None
        return cleaned if cleaned is None or len(cleaned) % 2 == 0 else cleaned + b"\0"

    def _describe_specimen(self, header: Any, cleaned: Any) -> None:
        """Write the Specimen module's required attributes without what they said. Source: PS3.3 C.7.6.22."""
        from pydicom.dataset import Dataset

        cleaned.ContainerIdentifier = self._pseudonym("container", str(header.get("ContainerIdentifier", "")))
        cleaned.IssuerOfTheContainerIdentifierSequence = []
        cleaned.AcquisitionContextSequence = []
        if "ContainerTypeCodeSequence" not in cleaned:
            cleaned.ContainerTypeCodeSequence = []
        specimens = []
        for specimen in header.get("SpecimenDescriptionSequence") or [Dataset()]:
            item = Dataset()
            item.SpecimenIdentifier = self._pseudonym("specimen", str(specimen.get("SpecimenIdentifier", "")))
            item.SpecimenUID = self._new_uid(str(specimen.get("SpecimenUID", "")))
            item.IssuerOfTheSpecimenIdentifierSequence = []
            item.SpecimenPreparationSequence = []
            specimens.append(item)
        cleaned.SpecimenDescriptionSequence = specimens

    def _state_removal(self, cleaned: Any) -> None:
        """Say that and how identity was removed. Source: PS3.15 E.1.1; code 113100 of PS3.16 CID 7050."""
        from pydicom.dataset import Dataset

        cleaned.PatientIdentityRemoved = "YES"
        cleaned.DeidentificationMethod = _METHOD
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        cleaned.DeidentificationMethodCodeSequence = [code]
        cleaned.LongitudinalTemporalInformationModified = "REMOVED"

    def _note(self, name: str, raw: Any) -> None:
        """Note an attribute that goes, unless it is empty or stays in another way."""
        value = raw.value
        words = value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value)
        is_kept = name in _MAKERS and _PLAIN_WORDS.fullmatch(words)
        if words and words != _DUMMIES.get(name) and not is_kept:
            self.removed[name or "attributes of no known name"] = None

    def _new_uid(self, old: str) -> str:
        """Replace a UID, the same one always by the same. Source of the form 2.25: PS3.5 B.2."""
        digest = hmac.digest(self._key, b"uid\0" + old.encode(), "sha256")
        bits = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
        return f"2.25.{uuid.UUID(int=bits).int}"

    def _pseudonym(self, kind: str, old: str) -> str:
        return hmac.digest(self._key, f"{kind}\0{old}".encode(), "sha256").hex()[:16]


def _is_harmless(element: Any) -> bool:
    """Say whether a value of an allowed attribute has its form: numbers, defined words, the one known class."""
    if element.VR in _NUMBER_VRS:  # a long list of numbers would be a place to hide text in
        return bool(element.VM <= _MOST_NUMBERS) or element.keyword == "DimensionIndexValues"
    values = element.value if isinstance(element.value, list) or element.VM > 1 else [element.value]
    texts = ["" if value is None else str(value) for value in values]
    if element.VR == "CS":
        return all(map(_DEFINED_WORD.fullmatch, texts))
    if element.VR in {"DS", "IS"}:
        return all(map(_NUMBER.fullmatch, texts))
    if element.keyword == "PositionReferenceIndicator":
        return texts == ["SLIDE_CORNER"]
    return bool(element.keyword == "SOPClassUID")


# --- frames ---------------------------------------------------------------------------------------------------------

_ITEM, _ITEM_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_UNDEFINED_LENGTH = 0xFFFFFFFF


def _find_frames(file: BinaryIO, start: int, header: Any, name: str) -> _Frames:
    """Find where Pixel Data begins and ends, and hash what lies in it. Source: PS3.5 A.4."""
    file.seek(start)
    group, element = struct.unpack("<HH", file.read(4))
    if (group, element) != (0x7FE0, 0x0010):
        raise ValueError("no Pixel Data")
    is_implicit = bool(header.file_meta.TransferSyntaxUID.is_implicit_VR)
    length = struct.unpack("<I", file.read(4) if is_implicit else file.read(8)[4:])[0]
    digest = hashlib.sha256(f"{header.TotalPixelMatrixColumns}x{header.TotalPixelMatrixRows}\n".encode())
    if length == _UNDEFINED_LENGTH:
        for n_bytes in _fragments(file):
            digest.update(hash_stored(file, n_bytes, name))
    else:
        for content in _chunks(file, length):
            digest.update(content)
    return _Frames(start, file.tell(), digest.hexdigest())


def _fragments(file: BinaryIO) -> Iterator[int]:
    """Yield the lengths of the items of an encapsulated Pixel Data, each to be read by the caller."""
    while True:
        group, element, length = struct.unpack("<HHI", file.read(8))
        if (group, element) == _ITEM_END:
            return
        if (group, element) != _ITEM or length == _UNDEFINED_LENGTH:
            raise ValueError("Pixel Data is not made of items")
        yield length


def _chunks(file: BinaryIO, n_bytes: int) -> Iterator[bytes]:
    while n_bytes:
        content = file.read(min(n_bytes, _COPY_BYTES))
        if not content:
            raise ValueError("the file ends within its pixels")
        n_bytes -= len(content)
        yield content
