"""Model cards and weights: find and verify."""

from slideway.registry.card import ModelCard, fingerprint_card, read_card, verify_files, write_card
from slideway.registry.store import DEFAULT_ENCODER, find_encoder, list_encoders, models_folder

__all__ = [
    "DEFAULT_ENCODER",
    "ModelCard",
    "find_encoder",
    "fingerprint_card",
    "list_encoders",
    "models_folder",
    "read_card",
    "verify_files",
    "write_card",
]
