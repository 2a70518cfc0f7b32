"""A small DICOM whole slide image (VL WSI, TILED_FULL, several levels, label and overview) for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from slideway.testing.slides import PATIENT, Pixels, cut_tiles

# What is the same in every instance. Source: PS3.3 A.32.8, the mandatory attributes of the VL WSI IOD.
_CONSTANT_FIELDS: dict[str, Any] = {
    "SOPClassUID": VLWholeSlideMicroscopyImageStorage,
    "Modality": "SM",
    "SeriesNumber": 1,
    "AccessionNumber": "A26-1",
    "PatientID": "S-1",
    "Manufacturer": "Slideway",
    "ManufacturerModelName": "Synthetic",
    "DeviceSerialNumber": "0",
    "SoftwareVersions": "1",
    "StudyDate": "20261123",
    "ContentDate": "20261123",
    "ContentTime": "120000",
    "AcquisitionDateTime": "20261123120000",
    "ContainerIdentifier": "A26-1-1-1",
    "PositionReferenceIndicator": "SLIDE_CORNER",
    "VolumetricProperties": "VOLUME",
    "FocusMethod": "AUTO",
    "ExtendedDepthOfField": "NO",
    "NumberOfOpticalPaths": 1,
    "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
    "DimensionOrganizationType": "TILED_FULL",
    "AcquisitionContextSequence": [],
    "ContainerTypeCodeSequence": [],
    "IssuerOfTheContainerIdentifierSequence": [],
}
_PIXEL_FIELDS: dict[str, Any] = {
    "TotalPixelMatrixFocalPlanes": 1,
    "ImagedVolumeDepth": 0.001,
    "SamplesPerPixel": 3,
    "PhotometricInterpretation": "YBR_FULL_422",
    "PlanarConfiguration": 0,
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "PixelRepresentation": 0,
    "LossyImageCompression": "01",
    "LossyImageCompressionMethod": "ISO_10918_1",
    "LossyImageCompressionRatio": 10,
}


def write_dicom_slide(
    folder: Path,
    levels: Sequence[Pixels],
    *,
    mpp: float = 0.5,
    label: Pixels | None = None,
    overview: Pixels | None = None,
    patient: str = PATIENT,
) -> Path:
    """Write one DICOM slide, an instance a file, into a folder; the patient's name stands in every one.

    Args:
        folder: Created when it is not there; several slides may be written into one.
        levels: Finest first; pixel spacings follow from their widths.
        mpp: µm/px of the first level; written in millimetres, as DICOM has it.
        label: Label image, if there is to be one.
        overview: Overview (macro) image, if there is to be one.
        patient: Patient's Name.

    Source:
        PS3.3 A.32.8 (VL Whole Slide Microscopy Image IOD), C.8.12.4.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {
        name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    shared["PatientName"] = patient
    shared["DimensionOrganizationSequence"] = [_item(DimensionOrganizationUID=generate_uid())]
    shared["SpecimenDescriptionSequence"] = [
        _item(
            SpecimenIdentifier="A26-1-1-1",
            SpecimenUID=generate_uid(),
            IssuerOfTheSpecimenIdentifierSequence=[],
            SpecimenPreparationSequence=[],
        )
    ]
    width_mm = mpp * levels[0].shape[1] / 1000
    pictures = [("VOLUME", level) for level in levels]
    pictures += [(kind, picture) for kind, picture in (("LABEL", label), ("OVERVIEW", overview)) if picture is not None]
    for number, (kind, picture) in enumerate(pictures, 1):
        instance = _make_instance(picture, kind, width_mm, number, shared)
        instance.save_as(folder / f"{instance.SOPInstanceUID}.dcm", enforce_file_format=True)
    return folder


def _make_instance(picture: Pixels, kind: str, width_mm: float, number: int, shared: dict[str, Any]) -> Dataset:
    uid = generate_uid()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(VLWholeSlideMicroscopyImageStorage)
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = UID(JPEGBaseline8Bit)
    is_shrunk = kind == "VOLUME" and number > 1
    instance = _item(
        **_CONSTANT_FIELDS,
        **_PIXEL_FIELDS,
        **shared,
        SOPInstanceUID=uid,
        InstanceNumber=number,
        ImageType=["DERIVED" if is_shrunk else "ORIGINAL", "PRIMARY", kind, "RESAMPLED" if is_shrunk else "NONE"],
        SpecimenLabelInImage="YES" if kind == "LABEL" else "NO",
        BurnedInAnnotation="YES" if kind == "LABEL" else "NO",
    )
    instance.file_meta = meta
    _add_sequences(instance, width_mm / picture.shape[1])
    _add_pixels(instance, picture, width_mm)
    return instance


def _add_sequences(instance: Dataset, spacing_mm: float) -> None:
    measures = _item(PixelSpacing=[spacing_mm, spacing_mm], SliceThickness=0.001)
    frame_type = _item(FrameType=instance.ImageType)
    shared = _item(PixelMeasuresSequence=[measures], WholeSlideMicroscopyImageFrameTypeSequence=[frame_type])
    instance.SharedFunctionalGroupsSequence = [shared]
    light = _item(CodeValue="414298005", CodingSchemeDesignator="SCT", CodeMeaning="Full Spectrum")
    method = _item(CodeValue="111744", CodingSchemeDesignator="DCM", CodeMeaning="Brightfield illumination")
    path = _item(
        OpticalPathIdentifier="0",
        IlluminationColorCodeSequence=[light],
        IlluminationTypeCodeSequence=[method],
        ICCProfile=_srgb_profile(),
        ObjectiveLensPower=20,
    )
    instance.OpticalPathSequence = [path]
    instance.TotalPixelMatrixOriginSequence = [
        _item(XOffsetInSlideCoordinateSystem=0, YOffsetInSlideCoordinateSystem=0)
    ]


def _add_pixels(instance: Dataset, picture: Pixels, width_mm: float, tile_px: int = 256) -> None:
    height, width = picture.shape[:2]
    is_tiled = instance.ImageType[2] == "VOLUME"
    columns, rows = (tile_px, tile_px) if is_tiled else (width, height)
    tiles = list(cut_tiles(picture, tile_px)) if is_tiled else [picture]
    frames = [imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=90, subsampling="420") for tile in tiles]
    instance.Rows, instance.Columns, instance.NumberOfFrames = rows, columns, len(frames)
    instance.TotalPixelMatrixColumns, instance.TotalPixelMatrixRows = width, height
    instance.ImagedVolumeWidth, instance.ImagedVolumeHeight = width_mm, width_mm * height / width
    instance.PixelData = encapsulate([bytes(frame) for frame in frames])


def _item(**fields: Any) -> Dataset:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item


def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
