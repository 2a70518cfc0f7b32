"""Measure TIAToolbox: `DeepFeatureExtractor` with its automatic tissue mask, as its documentation shows it.

Run it with the interpreter of an environment that has `tiatoolbox`.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from encoder_modules import IMAGENET_MEAN, IMAGENET_STD, TILE_MPP, TILE_PX, load_module
from measuring import Meter, parse_arguments, write_result
from openslide import OpenSlide


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], batch=4, default_batch=8, workers=0)
    kept: dict[str, np.ndarray] = {}
    slide_mpp = float(OpenSlide(arguments.slide).properties["openslide.mpp-x"])
    with Meter() as meter, tempfile.TemporaryDirectory() as scratch:
        with meter.stage("import"):
            import torch
            from tiatoolbox.models.architecture.vanilla import _infer_batch
            from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
            from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
            from tiatoolbox.models.models_abc import ModelABC
        torch.set_num_threads(arguments.threads)
        scale = (1 / (255 * np.array(IMAGENET_STD))).astype(np.float32)
        shift = (-np.array(IMAGENET_MEAN) / np.array(IMAGENET_STD)).astype(np.float32)

        class Backbone(ModelABC):
            """The library's own `TimmBackbone`, with our module in it and ImageNet's normalisation before it."""

            def __init__(self, module: torch.nn.Module) -> None:
                super().__init__()
                self.feat_extract = module

            def forward(self, imgs: torch.Tensor) -> torch.Tensor:
                return torch.flatten(self.feat_extract(imgs), 1)

            @staticmethod
            def preproc(image: np.ndarray) -> np.ndarray:
                return image * scale + shift

            @staticmethod
            def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, device: str) -> list[np.ndarray]:
                return [_infer_batch(model=model, batch_data=batch_data, device=device)]

        class TimedExtractor(DeepFeatureExtractor):
            """The library's engine with a clock around its two stages."""

            def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
                with meter.stage("tissue"):
                    loader = super().get_dataloader(*args, **kwargs)
                kept["corners"] = np.asarray(loader.dataset.inputs)[:, :2]
                return loader

            def infer_wsi(self, *args: Any, **kwargs: Any) -> Any:
                if arguments.tissue_only:
                    raise StopIteration
                with meter.stage("embedding"):
                    raw = super().infer_wsi(*args, **kwargs)
                    kept["vectors"] = np.asarray(raw["probabilities"])
                return raw

        with meter.stage("model"):
            extractor = TimedExtractor(
                Backbone(load_module(arguments.encoder, arguments.weights)),
                batch_size=arguments.batch,
                num_workers=arguments.workers,
                device="cpu",
                verbose=False,
            )
        resolution = [{"units": "mpp", "resolution": TILE_MPP}]
        with contextlib.suppress(StopIteration):
            extractor.run(
                [arguments.slide],
                patch_mode=False,
                ioconfig=IOPatchPredictorConfig(
                    input_resolutions=resolution,
                    output_resolutions=resolution,
                    patch_input_shape=(TILE_PX, TILE_PX),
                    stride_shape=(TILE_PX, TILE_PX),
                ),
                output_type="zarr",
                save_dir=Path(scratch) / "out",
                # It takes no pixel size from a plain TIFF's tags; its documentation says to state it so.
                wsireader_kwargs={"mpp": slide_mpp, "power": 10 / slide_mpp},
            )
    to_level0 = TILE_MPP / slide_mpp
    write_result(
        arguments,
        meter,
        peer="TIAToolbox",
        package="tiatoolbox",
        coordinates_level0=(kept["corners"] * to_level0).tolist(),
        tile_level0_px=TILE_PX * to_level0,
        vectors=kept.get("vectors"),
    )


if __name__ == "__main__":
    main()
