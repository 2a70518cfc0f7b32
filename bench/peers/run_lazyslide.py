"""Measure LazySlide: `find_tissues`, `tile_tissues`, `feature_extraction`, as its documentation shows them.

Run it with the interpreter of an environment that has `lazyslide`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from encoder_modules import TILE_MPP, TILE_PX, load_module, tile_transform
from measuring import Meter, parse_arguments, write_result


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], batch=4, default_batch=32, workers=0)
    with Meter() as meter, tempfile.TemporaryDirectory() as scratch:
        with meter.stage("import"):
            import lazyslide
            import torch
        torch.set_num_threads(arguments.threads)
        with meter.stage("model"):
            module = load_module(arguments.encoder, arguments.weights)
        with meter.stage("tissue"):
            slide = lazyslide.open_wsi(arguments.slide, store=str(Path(scratch) / "store.zarr"))
            lazyslide.pp.find_tissues(slide)
            lazyslide.pp.tile_tissues(slide, TILE_PX, mpp=TILE_MPP)
        bounds = slide.shapes["tiles"].bounds
        vectors = None
        if not arguments.tissue_only:
            with meter.stage("embedding"):
                vectors = lazyslide.tl.feature_extraction(
                    slide,
                    module,
                    model_name=arguments.encoder,
                    transform=tile_transform(),
                    device="cpu",
                    batch_size=arguments.batch,
                    num_workers=arguments.workers,
                    pbar=False,
                    return_features=True,
                )
    write_result(
        arguments,
        meter,
        peer="LazySlide",
        package="lazyslide",
        coordinates_level0=bounds[["minx", "miny"]].to_numpy().tolist(),
        tile_level0_px=float((bounds["maxx"] - bounds["minx"]).median()),
        vectors=vectors,
    )


if __name__ == "__main__":
    main()
