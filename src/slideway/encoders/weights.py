"""A checkpoint's tensors under the network's own names, complete, of the right shape, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from slideway.core.errors import UnreadableCheckpointError
from slideway.encoders.architecture import VisionTransformer
from slideway.encoders.naming import find_style, match_names
from slideway.encoders.slots import Slot

Tensor = NDArray[np.float32]
Weights = Mapping[str, Tensor]


def read_weights(slot: Slot, checkpoint: Path) -> dict[str, Tensor]:
    """Read the network's tensors from a safetensors file.

    Args:
        slot: What the checkpoint must be.
        checkpoint: A `.safetensors` file; `open_checkpoint` makes one of any other.

    Raises:
        UnreadableCheckpointError: A tensor is missing, surplus, or of another shape; the message names it.
    """
    from slideway.encoders.extras import require_torch

    require_torch()
    try:
        with safe_open(checkpoint, "pt") as file:  # torch reads bfloat16, numpy does not

            def read(name: str) -> Tensor:
                tensor: Tensor = file.get_tensor(name).float().numpy()
                return tensor

            return _collect(slot, list(file.keys()), read)
    except SafetensorError as error:
        raise UnreadableCheckpointError(
            f"{checkpoint.name}: not a whole safetensors file ({error}); download it again"
        ) from error


def _collect(slot: Slot, names: list[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    network = slot.network
    style, prefix = find_style(slot.styles, network, names)
    matched = match_names(style, prefix, network, names, ignored=slot.ignored)
    weights = {}
    for name, sources in matched.items():
        parts = [read(source) for source in sources]
        mask = f"{sources[0]}_mask"  # DINOv3 trains a bias for the keys and masks it out
        try:
            tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
            tensor = tensor * read(mask) if mask in names else tensor
        except ValueError as error:
            raise UnreadableCheckpointError(
                f"{', '.join(sources)}: these tensors do not fit together ({error}); this is no checkpoint of {slot.id}"
            ) from error
        weights[name] = _fit(network, name, np.ascontiguousarray(tensor))
    if network.positions == "rotary":
        weights["rope_periods"] = _rotary_periods(network, f"{prefix}rope_embed.periods", names, read)
    return weights


def _fit(network: VisionTransformer, name: str, tensor: Tensor) -> Tensor:
    wanted = network.tensor_shapes()[name]
    if name == "pos_embed" and tensor.shape != wanted:
        tensor = _resize_positions(network, tensor)
    if (
        tensor.size == math.prod(wanted)
        and tensor.shape != wanted
        and sorted(set(tensor.shape) - {1}) == sorted(set(wanted) - {1})
    ):
        tensor = tensor.reshape(wanted)  # (1, width) for (1, 1, width)
    if tensor.shape != wanted:
        raise UnreadableCheckpointError(
            f"tensor {name} is {tensor.shape} in this checkpoint and {wanted} in the slot; choose the slot of this "
            "very model, or give the file that its authors published"
        )
    if not np.isfinite(tensor).all():
        raise UnreadableCheckpointError(
            f"tensor {name} holds numbers that are not finite; the file is damaged: download it again"
        )
    return tensor


def _resize_positions(network: VisionTransformer, positions: Tensor) -> Tensor:
    """Bring learnt positions of another picture size to this one's grid, as the transformers library does when run.

    Source: transformers `Dinov2Embeddings.interpolate_pos_encoding`: bicubic, corners not aligned, no antialiasing.
    """
    import torch

    prefix = network.position_prefix
    edge = math.isqrt(max(positions.shape[1] - prefix, 0)) if positions.ndim == 3 else 0
    if edge < 2 or positions.shape[1] != prefix + edge**2 or positions.shape[2] != network.width:
        return positions  # the caller names the shape that does not fit
    patches = torch.from_numpy(positions[:, prefix:]).reshape(1, edge, edge, network.width).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(patches, size=(network.grid,) * 2, mode="bicubic", align_corners=False)
    flat = resized.permute(0, 2, 3, 1).reshape(1, network.patches, network.width).numpy()
    return np.concatenate([positions[:, :prefix], flat], axis=1)


def _rotary_periods(network: VisionTransformer, name: str, names: list[str], read: Callable[[str], Tensor]) -> Tensor:
    """Periods of the rotary positions: the checkpoint's, else DINOv3's own (base 100)."""
    wanted = network.head_width // 4
    periods = read(name) if name in names else np.float32(100.0) ** (np.arange(wanted, dtype=np.float32) / wanted)
    if periods.shape != (wanted,) or not (np.isfinite(periods).all() and (periods > 0).all()):
        raise UnreadableCheckpointError(f"{name}: {wanted} rotary periods above 0 are needed; the file is damaged")
    return periods.astype(np.float32)


def rotary_angles(network: VisionTransformer, periods: Tensor) -> NDArray[np.float64]:
    """Angle of every patch in every dimension of a head, (patches, head_width).

    Source: DINOv3 `RopePositionEmbedding`, coordinates normalised separately, no augmentation.
    """
    centre = 2 * (np.arange(network.grid) + 0.5) / network.grid - 1
    rows, columns = np.meshgrid(centre, centre, indexing="ij")
    places = np.stack([rows.ravel(), columns.ravel()], axis=1)
    angles = 2 * np.pi * places[:, :, None] / periods.astype(np.float64)
    return np.tile(angles.reshape(network.patches, -1), 2)
