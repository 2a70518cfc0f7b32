"""Measure TRIDENT: `run_patching_job` and `run_patch_feature_extraction_job` of its `Processor`.

TRIDENT's tissue segmentation is a network whose weights come from a model hub. Contours of our own (GeoJSON, level-0
pixels, which TRIDENT accepts) take its place here, so the tissue stage is not TRIDENT's own.

Run it with the interpreter of an environment in which `import trident` works (see README.md).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import h5py
from encoder_modules import TILE_PX, load_module, tile_transform
from measuring import Meter, parse_arguments, write_result

TARGET_MAGNIFICATION = 20  # TRIDENT counts in magnification; 20 is 0.5 um per pixel


def draw_contours(slide: Path, out: Path) -> None:
    """Stand in for TRIDENT's segmentation: outer contours of an Otsu mask on the saturation of a thumbnail."""
    import cv2
    import numpy as np
    from openslide import OpenSlide

    with OpenSlide(slide) as opened:
        thumbnail = np.asarray(opened.get_thumbnail((1500, 1500)))
        scale = opened.dimensions[0] / thumbnail.shape[1]
    saturation = cv2.medianBlur(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)[:, :, 1], 7)
    _, mask = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    features = []
    for number, contour in enumerate(contours):
        if cv2.contourArea(contour) < 500:
            continue
        ring = (contour[:, 0, :] * scale).round().tolist()
        polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        features.append({"type": "Feature", "properties": {"tissue_id": number}, "geometry": polygon})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], batch=4, default_batch=512, workers=1)
    with Meter() as meter, tempfile.TemporaryDirectory() as scratch:
        slides, job = Path(scratch) / "slides", Path(scratch) / "job"
        slides.mkdir()
        shutil.copyfile(arguments.slide, slides / arguments.slide.name)
        draw_contours(arguments.slide, job / "contours_geojson" / f"{arguments.slide.stem}.geojson")
        with meter.stage("import"):
            import torch
            from trident import Processor
            from trident.patch_encoder_models import CustomInferenceEncoder
        torch.set_num_threads(arguments.threads)
        with meter.stage("model"):
            module = load_module(arguments.encoder, arguments.weights)
            encoder = CustomInferenceEncoder(arguments.encoder, module, tile_transform(), torch.float32)
        with meter.stage("tissue"):
            processor = Processor(
                job_dir=str(job),
                wsi_source=str(slides),
                wsi_ext=[arguments.slide.suffix],
                max_workers=arguments.workers,
            )
            coordinates_dir = processor.run_patching_job(TARGET_MAGNIFICATION, TILE_PX, visualize=False)
        name = arguments.slide.stem
        with h5py.File(Path(coordinates_dir) / "patches" / f"{name}_patches.h5") as file:
            coordinates = file["coords"][:]
            tile_level0_px = float(file["coords"].attrs["patch_size_level0"])
        vectors = None
        if not arguments.tissue_only:
            with meter.stage("embedding"):
                features_dir = processor.run_patch_feature_extraction_job(
                    coords_dir=coordinates_dir, patch_encoder=encoder, device="cpu", batch_limit=arguments.batch
                )
            with h5py.File(Path(features_dir) / f"{name}.h5") as file:
                vectors = file["features"][:]
    write_result(
        arguments,
        meter,
        peer="TRIDENT",
        package="trident-test",
        coordinates_level0=coordinates.tolist(),
        tile_level0_px=tile_level0_px,
        vectors=vectors,
        own_tissue=False,
        notes="tissue: an Otsu stand-in of ours; TRIDENT's own segmentation needs weights from a model hub",
    )


if __name__ == "__main__":
    main()
