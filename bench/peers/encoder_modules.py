"""The benchmark's encoders as torch modules: one definition for the export and for every peer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TILE_PX = 224
TILE_MPP = 0.5
WIDTHS = {"efficientnet_lite0": 1280, "mobilenet_v2": 1280, "vit_small": 384}


def build_module(encoder: str) -> torch.nn.Module:
    """Build one encoder with no classifier: normalised tiles (N, 3, 224, 224) to pooled vectors.

    The timm and torchvision definitions are used as they come, so that a peer runs what its users run.
    """
    import torch

    if encoder == "mobilenet_v2":
        from torchvision.models import mobilenet_v2

        features = mobilenet_v2(weights=None).features
        return torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1))
    import timm

    timm_names = {"efficientnet_lite0": "tf_efficientnet_lite0", "vit_small": "vit_small_patch16_224"}
    return timm.create_model(timm_names[encoder], pretrained=False, num_classes=0)


def load_module(encoder: str, weights_dir: Path) -> torch.nn.Module:
    """Build one encoder and load the weights that `make_encoders.py` wrote."""
    from safetensors.torch import load_file

    module = build_module(encoder)
    module.load_state_dict(load_file(weights_dir / encoder / f"{encoder}.safetensors"))
    return module.eval()


def tile_transform() -> Callable[[Any], torch.Tensor]:
    """Return the usual torchvision transform: to tensor, ImageNet mean and standard deviation."""
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
