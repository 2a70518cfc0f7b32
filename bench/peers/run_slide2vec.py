"""Measure slide2vec: `Model.embed_slide` with its default tissue detection, as its documentation shows it.

Run it with the interpreter of an environment that has `slide2vec`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from encoder_modules import IMAGENET_MEAN, IMAGENET_STD, TILE_MPP, TILE_PX, WIDTHS, load_module
from measuring import Meter, Stage, parse_arguments, tree_cpu_s, write_result


class StageReporter:
    """A progress reporter for slide2vec that notes the clock at every event."""

    def __init__(self) -> None:
        self.marks: dict[str, Stage] = {}

    def emit(self, event: Any) -> None:
        self.marks.setdefault(event.kind, Stage(time.perf_counter(), tree_cpu_s()))

    def close(self) -> None:
        """slide2vec calls this at the end."""

    def write_log(self, message: str, *, stream: Any = None) -> None:  # noqa: ARG002 - slide2vec's signature
        print(message)

    def between(self, first: str, last: str) -> Stage:
        start, end = self.marks[first], self.marks[last]
        return Stage(end.wall_s - start.wall_s, end.cpu_s - start.cpu_s)


def mean_colour() -> Any:
    """Return a module that costs nothing, for a run that only asks which tiles are kept."""
    from torch import nn

    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def register(encoder: str, weights_dir: Any, *, tissue_only: bool) -> None:
    """Register our module under its own name, the way slide2vec's documentation tells to add an encoder."""
    from slide2vec.encoders import register_encoder
    from slide2vec.encoders.base import TorchTileEncoder

    width = 3 if tissue_only else WIDTHS[encoder]

    @register_encoder(
        f"bench-{encoder}",
        encode_dim=width,
        input_size=TILE_PX,
        supports_variable_input_size=False,
        supported_spacing_um=TILE_MPP,
        precision="fp32",
        source="fixed-seed weights of a benchmark",
    )
    class BenchEncoder(TorchTileEncoder):
        def __init__(self, *, output_variant: str | None = None) -> None:
            super().__init__(
                mean_colour() if tissue_only else load_module(encoder, weights_dir),
                encode_dim=width,
                input_size=TILE_PX,
                mean=IMAGENET_MEAN,
                std=IMAGENET_STD,
                output_variant=output_variant,
            )


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], batch=4, default_batch=32, workers=0)
    reporter = StageReporter()
    with Meter() as meter:
        with meter.stage("import"):
            import torch
            from hs2p import TilingConfig
            from slide2vec import ExecutionOptions, Model, PreprocessingConfig
            from slide2vec.progress import ProgressEvent, activate_progress_reporter
        torch.set_num_threads(arguments.threads)
        register(arguments.encoder, arguments.weights, tissue_only=arguments.tissue_only)
        preprocessing = PreprocessingConfig(
            tiling=TilingConfig(
                requested_spacing_um=TILE_MPP, requested_tile_size_px=TILE_PX, tolerance=0.05, overlap=0.0
            )
        )
        execution = ExecutionOptions(
            batch_size=arguments.batch, num_workers_per_gpu=arguments.workers, num_gpus=1, precision="fp32"
        )
        model = Model.from_preset(f"bench-{arguments.encoder}", device="cpu")
        with activate_progress_reporter(reporter):
            embedded = model.embed_slide(arguments.slide, preprocessing=preprocessing, execution=execution)
            reporter.emit(ProgressEvent(kind="bench.end"))
    loading = reporter.between("model.loading", "model.ready")
    meter.stages["model"] = loading
    meter.stages["tissue"] = reporter.between("tiling.started", "embedding.started")
    if not arguments.tissue_only:
        # slide2vec loads the model inside its embedding stage; that belongs to start-up here, as with the others.
        embedding = reporter.between("embedding.started", "bench.end")
        meter.stages["embedding"] = Stage(embedding.wall_s - loading.wall_s, embedding.cpu_s - loading.cpu_s)
    write_result(
        arguments,
        meter,
        peer="slide2vec",
        package="slide2vec",
        coordinates_level0=np.stack([embedded.x, embedded.y], axis=1).tolist(),
        tile_level0_px=float(embedded.tile_size_lv0),
        vectors=embedded.tile_embeddings.numpy(),
    )


if __name__ == "__main__":
    main()
