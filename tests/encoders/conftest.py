"""Random weights of a slot's real form."""

from __future__ import annotations

import math

import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_weights():
    """`random_weights(slot)`: every tensor of the slot's network, drawn so that activations stay of order one."""

    def draw(slot):
        random = np.random.default_rng(20)
        weights = {}
        for name, shape in slot.network.tensor_shapes().items():
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                value = 1 + 0.1 * random.standard_normal(shape)
            elif name.endswith("gamma"):
                value = random.uniform(0.1, 1, shape)
            elif name.endswith("bias"):
                value = 0.02 * random.standard_normal(shape)
            else:
                value = random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
            weights[name] = value.astype(np.float32)
        if slot.network.positions == "rotary":
            quarter = slot.network.head_width // 4
            weights["rope_periods"] = np.float32(100) ** (np.arange(quarter, dtype=np.float32) / quarter)
        return weights

    return draw
