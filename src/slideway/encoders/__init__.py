"""Turn tiles into embeddings."""

from slideway.encoders.encode import EncodedTiles, encode_tiles
from slideway.encoders.encoder import Encoder, load_encoder
from slideway.encoders.engines import ENGINES, available_engines, choose_engine
from slideway.encoders.speed import EngineSpeed, measure_engines, remember_engine

__all__ = [
    "ENGINES",
    "EncodedTiles",
    "Encoder",
    "EngineSpeed",
    "available_engines",
    "choose_engine",
    "encode_tiles",
    "load_encoder",
    "measure_engines",
    "remember_engine",
]
