"""Keep decoded stored tiles while the rolling band of the slide that needs them is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray


class StoredTileCache:
    """Least-recently-used stored tiles, bounded in bytes.

    Attributes:
        decoded: How many stored tiles were decoded so far; a test holds it to once each.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tiles: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self.decoded = 0

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the tile of `key`, decoding it when it is not held."""
        tile = self._tiles.get(key)
        if tile is not None:
            self._tiles.move_to_end(key)
            return tile
        tile = decode()
        self.decoded += 1
        self._tiles[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > self._max_bytes and len(self._tiles) > 1:
            _, dropped = self._tiles.popitem(last=False)
            self._bytes -= dropped.nbytes
        return tile
