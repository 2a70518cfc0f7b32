"""Image descriptions of the vendors, written anew from the few keys that pixels and physical scale need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from slideway.core.errors import DeidentifyError

MAX_XML_CHARACTERS = 32_000_000  # Philips keeps its label picture in there

# A value must look like a number of ordinary length: whatever else stands behind an allowed key is dropped.
_NUMBER = re.compile(r"[-+]?\d{1,9}(\.\d{1,12})?([eE][-+]?\d{1,2})?")


@dataclass(frozen=True)
class Words:
    """A description without identifiers.

    Attributes:
        text: What is written; empty for none.
        kept: Names of the keys that stayed.
        removed: Names of the keys that went, never their values.
    """

    text: str = ""
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


# --- Aperio --------------------------------------------------------------------------------------------------------

# Scale, optics and place on the glass. Everything else (dates, user, title, barcode, serials, file name …) goes.
_APERIO_KEYS = {
    "AppMag", "MPP", "StripeWidth", "OriginalWidth", "OriginalHeight", "Left", "Top", "LineCameraSkew",
    "LineAreaXOffset", "LineAreaYOffset", "Focus Offset", "Filtered", "Exposure Time", "Exposure Scale",
    "DisplayColor", "Gamma", "OffsetX", "OffsetY", "TotalDepth",
}  # fmt: skip
_APERIO_MAKER = re.compile(r"Aperio (Image Library|Leica Biosystems GT450( DX)?) v\d{1,3}(\.\d{1,4}){0,3}")
_APERIO_SIZES = re.compile(
    r"\d{1,7}x\d{1,7}( \[\d{1,7},\d{1,7} \d{1,7}x\d{1,7}\])?( \(\d{1,5}x\d{1,5}\))?( -> \d{1,7}x\d{1,7})?( -)?"
    r"( (JPEG|J2K)/(RGB|YUV16|KDU|YCC|YCbCr)( Q=\d{1,3})?)?"
)


def rewrite_aperio(description: str, size_px: tuple[int, int]) -> Words:
    r"""Keep Aperio's library version, sizes and numeric keys of scale.

    Example:
        >>> text = "Aperio Image Library v11\r\n2220x2967 (240x240)|AppMag = 20|User = Doe|MPP = 0.4990"
        >>> rewrite_aperio(text, (2220, 2967)).text
        'Aperio Image Library v11\r\n2220x2967 (240x240)|AppMag = 20|MPP = 0.4990'
    """
    head, *parts = description.split("|")
    maker, _, sizes = (part.strip() for part in head.split(";")[0].partition("\n"))
    maker = maker if _APERIO_MAKER.fullmatch(maker) else "Aperio Image Library v1"
    sizes = sizes if _APERIO_SIZES.fullmatch(sizes) else f"{size_px[0]}x{size_px[1]}"
    kept, removed = _sort_pairs(parts, _APERIO_KEYS)
    return Words(
        "|".join([f"{maker}\r\n{sizes}", *(f"{key} = {value}" for key, value in kept.items())]),
        kept=tuple(kept),
        removed=tuple(f"Aperio {key}" for key in removed),
    )


def _sort_pairs(parts: list[str], allowed: set[str]) -> tuple[dict[str, str], list[str]]:
    """Split `key = value` parts into those that may stay and the names of the rest; unknown names are not repeated."""
    kept: dict[str, str] = {}
    removed = []
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key in allowed and _NUMBER.fullmatch(value):
            kept[key] = value
        else:
            removed.append(key if re.fullmatch(r"[A-Za-z][A-Za-z /]{0,30}", key) else "unknown key")
    return kept, removed


# --- Trestle -------------------------------------------------------------------------------------------------------

_TRESTLE_KEYS = {"Objective Power", "JPEG Quality"}
_TRESTLE_PLAIN = re.compile(r"OverlapsXY=( ?\d{1,5}){0,40}|Background Color=[0-9A-Fa-f]{6}")


def rewrite_trestle(description: str) -> Words:
    """Keep Trestle's objective and overlaps; its levels overlap, so OpenSlide needs those. Pairs end with `;`."""
    parts = [part for part in description.split(";") if part.strip()]
    plain = [part.strip() for part in parts if _TRESTLE_PLAIN.fullmatch(part.strip())]
    kept, removed = _sort_pairs([part for part in parts if part.strip() not in plain], _TRESTLE_KEYS)
    pairs = [f"{key}={value}" for key, value in kept.items()]
    return Words(
        ";".join([*pairs, *plain]),
        kept=(*kept, *(part.partition("=")[0] for part in plain)),
        removed=tuple(f"Trestle {key}" for key in removed),
    )


# --- OME -----------------------------------------------------------------------------------------------------------

_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_UNITS = {"µm", "um", "nm", "mm", "cm", "m"}
_OME_NUMBERS = ("SizeX", "SizeY", "SizeC", "SizeZ", "SizeT", "PhysicalSizeX", "PhysicalSizeY", "SignificantBits")
_OME_CHOICES = {
    "Type": {"uint8"},
    "DimensionOrder": {"XYZCT", "XYZTC", "XYCTZ", "XYCZT", "XYTCZ", "XYTZC"},
    "Interleaved": {"true", "false"},
    "BigEndian": {"true", "false"},
    "PhysicalSizeXUnit": _UNITS,
    "PhysicalSizeYUnit": _UNITS,
}


def rewrite_ome(description: str, size_px: tuple[int, int], name: str) -> Words:
    """Write OME-XML anew with one image: its size, its form and its physical size, nothing else.

    Raises:
        DeidentifyError: The XML cannot be parsed, or the slide has focal planes, time points or separate channels.
    """
    root = parse_xml(description, name)
    images = [pixels for pixels in root.iter() if _local(pixels) == "Pixels"]
    found = [p for p in images if (p.get("SizeX"), p.get("SizeY")) == (str(size_px[0]), str(size_px[1]))]
    if not found:
        raise DeidentifyError(f"{name}: its OME-XML describes no image of the slide's size; convert it to a plain TIFF")
    pixels = found[0]
    if {pixels.get("SizeZ", "1"), pixels.get("SizeT", "1")} != {"1"} or pixels.get("SizeC") != "3":
        raise DeidentifyError(
            f"{name}: an OME-TIFF with focal planes, time points or separate channels; only 8-bit RGB of one plane can "
            "be written anew here: convert it to that first"
        )
    kept = {key: value for key in _OME_NUMBERS if _NUMBER.fullmatch(value := pixels.get(key, ""))}
    kept |= {key: value for key, may in _OME_CHOICES.items() if (value := pixels.get(key, "")) in may}
    attributes = "".join(f' {key}="{value}"' for key, value in kept.items())
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{_OME}"><Image ID="Image:0"><Pixels ID="Pixels:0"'
        f'{attributes}><Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels>'
        "</Image></OME>"
    )
    return Words(text, kept=tuple(kept), removed=(*_ome_losses(root), *(["further OME images"] if images[1:] else [])))


def _ome_losses(root: ElementTree.Element) -> list[str]:
    written = {"OME", "Image", "Pixels", "Channel", "TiffData"}
    known = {"AcquisitionDate", "Description", "StructuredAnnotations", "Experimenter", "Instrument", "Plane"}
    there = {_local(element) for element in root.iter()} - written
    return [f"OME {name}" for name in sorted(there & known)] + (["other OME elements"] if there - known else [])


# --- Philips -------------------------------------------------------------------------------------------------------

PHILIPS_SOFTWARE = "Philips DP v1.0"
# What OpenSlide reads of Philips's XML to tell levels and their scale; all of it numbers, or the words given here.
_PHILIPS_NUMBERS = {
    "DICOM_PIXEL_SPACING": ("IDoubleArray", "0x0028", "0x0030"),
    "PIIM_PIXEL_DATA_REPRESENTATION_NUMBER": ("IUInt16", "0x1001", "0x8B02"),
    "PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS": ("IUInt32", "0x301D", "0x2001"),
    "PIIM_PIXEL_DATA_REPRESENTATION_ROWS": ("IUInt32", "0x301D", "0x2002"),
    "PIIM_PIXEL_DATA_REPRESENTATION_POSITION": ("IDoubleArray", "0x301D", "0x2003"),
}
_LEVELS = "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"


def rewrite_philips(description: str, name: str) -> Words:
    """Write Philips's XML anew with the whole slide image alone: its levels, their sizes and spacings.

    Raises:
        DeidentifyError: It does not hold exactly one whole slide image with pixel spacings.
    """
    root = parse_xml(description, name)
    scans = [item for item in root.iter("DataObject") if item.get("ObjectType") == "DPScannedImage"]
    slides = [scan for scan in scans if _philips_own(scan, "PIM_DP_IMAGE_TYPE") == "WSI"]
    if len(slides) != 1 or "DICOM_PIXEL_SPACING" not in (numbers := _philips_numbers(slides[0])):
        raise DeidentifyError(
            f"{name}: its Philips XML does not describe exactly one whole slide image with its pixel spacing; convert "
            "it to a plain TIFF or to DICOM"
        )
    levels = [item for item in slides[0].iter("DataObject") if item.get("ObjectType") == "PixelDataRepresentation"]
    inner = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{_philips_attributes(_philips_numbers(level))}</DataObject>'
        for level in levels
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        f"{_philips_attribute('DICOM_MANUFACTURER', ('IString', '0x0008', '0x0070'), 'PHILIPS')}"
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage">'
        f"{_philips_attribute('PIM_DP_IMAGE_TYPE', ('IString', '0x301D', '0x1004'), 'WSI')}"
        f"{_philips_attributes(numbers)}"
        f'<Attribute Name="{_LEVELS}" Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray"><Array>{inner}</Array>'
        "</Attribute></DataObject></Array></Attribute></DataObject>"
    )
    pictures = tuple("label or macro image in the XML" for _ in scans[1:])
    return Words(text, kept=tuple(numbers), removed=(*pictures, "other Philips attributes"))


def _philips_own(item: ElementTree.Element, key: str) -> str:
    """Text of an attribute that stands directly below an object, not in one nested in it."""
    return next(((a.text or "").strip() for a in item.findall("Attribute") if a.get("Name") == key), "")


def _philips_numbers(item: ElementTree.Element) -> dict[str, str]:
    found = {key: _philips_own(item, key) for key in _PHILIPS_NUMBERS}
    return {key: text for key, text in found.items() if re.fullmatch(r'("?[-+]?\d{1,9}(\.\d{1,12})?"? ?){1,4}', text)}


def _philips_attributes(numbers: dict[str, str]) -> str:
    return "".join(_philips_attribute(key, _PHILIPS_NUMBERS[key], value) for key, value in numbers.items())


def _philips_attribute(key: str, form: tuple[str, str, str], value: str) -> str:
    escaped = value.replace('"', "&quot;")
    return f'<Attribute Name="{key}" Group="{form[1]}" Element="{form[2]}" PMSVR="{form[0]}">{escaped}</Attribute>'


# --- Leica SCN -----------------------------------------------------------------------------------------------------

_LEICA = "http://www.leica-microsystems.com/scn/2010/10/01"
_PLACE = ("sizeX", "sizeY", "offsetX", "offsetY")


@dataclass(frozen=True)
class _LeicaScan:
    """One scanned area: its place on the glass in nanometres, and (width, height, directory) of each level."""

    place: dict[str, str]
    levels: tuple[tuple[str, str, int], ...]
    optics: dict[str, str]


def find_leica_directories(description: str, name: str) -> list[int]:
    """List the directories that hold levels of the scanned areas, in the order of the XML; never the overview's.

    Raises:
        DeidentifyError: The XML is damaged or describes no scanned area.
    """
    return [level[2] for scan in _leica_scans(description, name)[1] for level in scan.levels]


def rewrite_leica(description: str, name: str) -> Words:
    """Write Leica's XML anew with the scanned areas alone: places, sizes, objective; directories counted from 0.

    Raises:
        DeidentifyError: The XML is damaged or describes no scanned area.
    """
    glass, scans = _leica_scans(description, name)
    images, number = "", 0
    for scan in scans:
        dimensions = ""
        for index, (width, height, _) in enumerate(scan.levels):
            dimensions += f'<dimension sizeX="{width}" sizeY="{height}" r="{index}" ifd="{number}"/>'
            number += 1
        place = "".join(f' {key}="{value}"' for key, value in scan.place.items())
        optics = {key: f"<{key}>{value}</{key}>" for key, value in scan.optics.items()}
        images += (
            f'<image><pixels sizeX="{scan.levels[0][0]}" sizeY="{scan.levels[0][1]}">{dimensions}</pixels>'
            f"<view{place}/><scanSettings><objectiveSettings>{optics.get('objective', '')}</objectiveSettings>"
            f"<illuminationSettings>{optics.get('numericalAperture', '')}<illuminationSource>brightfield"
            "</illuminationSource></illuminationSettings></scanSettings></image>"
        )
    sizes = "".join(f' {key}="{value}"' for key, value in glass.items())
    text = f'<?xml version="1.0"?><scn xmlns="{_LEICA}"><collection{sizes}>{images}</collection></scn>'
    removed = ("Leica barcode, names, dates, device and other elements",)
    return Words(text, kept=("sizes and places on the glass", *scans[0].optics), removed=removed)


def _leica_scans(description: str, name: str) -> tuple[dict[str, str], list[_LeicaScan]]:
    collection = next((e for e in parse_xml(description, name).iter() if _local(e) == "collection"), None)
    if collection is None:
        raise DeidentifyError(f"{name}: its Leica XML holds no collection of images; convert the slide to DICOM")
    glass = _numbers_of(collection, ("sizeX", "sizeY"))
    scans = []
    for image in (element for element in collection if _local(element) == "image"):
        found = {_local(element): element for element in image.iter()}
        place = _numbers_of(found["view"], _PLACE) if "view" in found else {}
        is_whole_glass = {**glass, "offsetX": "0", "offsetY": "0"} == place
        source = (found["illuminationSource"].text or "").strip() if "illuminationSource" in found else ""
        levels = tuple(_leica_levels(image))
        if len(place) == len(_PLACE) and not is_whole_glass and source == "brightfield" and levels:
            texts = {key: (found[key].text or "").strip() for key in ("objective", "numericalAperture") if key in found}
            scans.append(_LeicaScan(place, levels, {k: v for k, v in texts.items() if _NUMBER.fullmatch(v)}))
    if not scans or len(glass) != 2:
        raise DeidentifyError(f"{name}: its Leica XML describes no scanned area; convert the slide to DICOM")
    return glass, scans


def _leica_levels(image: ElementTree.Element) -> Iterator[tuple[str, str, int]]:
    """Yield the levels of the first focal plane."""
    for dimension in (element for element in image.iter() if _local(element) == "dimension"):
        numbers = _numbers_of(dimension, ("sizeX", "sizeY", "ifd"))
        if len(numbers) == 3 and numbers["ifd"].isdecimal() and dimension.get("z", "0") == "0":
            yield numbers["sizeX"], numbers["sizeY"], int(numbers["ifd"])


def _numbers_of(element: ElementTree.Element, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: value for key in keys if _NUMBER.fullmatch(value := element.get(key, ""))}


# --- XML -----------------------------------------------------------------------------------------------------------


def parse_xml(text: str, name: str) -> ElementTree.Element:
    """Parse a description that is XML.

    Raises:
        DeidentifyError: It is too long, damaged, or declares entities, which no scanner does.
    """
    if len(text) > MAX_XML_CHARACTERS or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DeidentifyError(f"{name}: its XML is larger than any scanner's, or declares entities; it is not read")
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))  # noqa: S314  entities refused above
    except ElementTree.ParseError as error:
        raise DeidentifyError(f"{name}: its XML is damaged; convert the slide to a plain TIFF or to DICOM") from error


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
