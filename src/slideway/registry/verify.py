"""See that a model's files are those its card names, and that they name no files outside."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from slideway.core.errors import UntrustedEncoderError
from slideway.registry.onnx_file import list_external_files
from slideway.registry.records import ModelCard


def verify_files(card: ModelCard) -> None:
    """Hash weights and golden tiles, and see that the golden tiles were made for this very card.

    Whether the weights *compute* what the card promises is seen only when they run: `slideway.encoders.load_encoder`.

    Raises:
        UntrustedEncoderError: A file is missing, changed, belongs to another card, or names files that the card does
            not.
    """
    _require_hash(card, card.weights_path, card.weights.sha256)
    second_file = card.weights_path.with_name(card.weights.file + ".data")
    if card.weights.data_sha256 or second_file.exists():
        _require_hash(card, second_file, card.weights.data_sha256)
    _require_hash(card, card.golden_path, card.golden.sha256)
    _require_golden_fits(card)
    _require_no_foreign_files(card)


def require_golden_stamp(card: ModelCard) -> None:
    """Refuse golden tiles that do not say which fingerprint they were made for: what is installed must say it.

    Raises:
        UntrustedEncoderError: The golden tiles carry no fingerprint, or another one.
    """
    with safe_open(card.golden_path, "numpy") as golden:
        made_for = (golden.metadata() or {}).get("fingerprint")
    if made_for != card.fingerprint:
        raise UntrustedEncoderError(
            f"{card.id}: {card.golden.file} does not carry the card's fingerprint in its metadata, so a change of the "
            "card would go unnoticed; build the model again with `slideway models add`"
        )


def _require_no_foreign_files(card: ModelCard) -> None:
    # An ONNX file may keep tensors in files of any name; only <weights>.data, whose hash the card states, is accepted.
    allowed = {f"{card.weights.file}.data"} if card.weights.data_sha256 else set()
    try:
        named = list_external_files(card.weights_path)
    except ValueError as error:
        raise UntrustedEncoderError(f"{card.id}: {card.weights.file} is no ONNX file ({error})") from error
    if foreign := sorted(named - allowed):
        raise UntrustedEncoderError(
            f"{card.id}: {card.weights.file} takes tensors from {len(foreign)} other files ({foreign[0][:80]!r} ...), "
            f"which the card does not name; only {card.weights.file}.data with its data_sha256 on the card is accepted"
        )


def _require_hash(card: ModelCard, path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UntrustedEncoderError(
            f"{card.id}: {path.name} cannot be read ({type(error).__name__}); install the encoder again"
        ) from error
    if found != sha256:
        raise UntrustedEncoderError(
            f"{card.id}: {path.name} is not the file its card names (sha256 {found[:12]} instead of "
            f"{sha256[:12] or 'none'}); it was changed or damaged: install the encoder again"
        )


def _require_golden_fits(card: ModelCard) -> None:
    edge, width = card.input.tile_px, card.output.width
    try:
        with safe_open(card.golden_path, "numpy") as golden:
            made_for = (golden.metadata() or {}).get("fingerprint")
            tiles, vectors = golden.get_slice("tiles"), golden.get_slice("vectors")
            shapes = (tuple(tiles.get_shape()), tuple(vectors.get_shape()))
    except SafetensorError as error:
        raise UntrustedEncoderError(f"{card.id}: {card.golden.file} holds no golden tiles ({error})") from error
    n = shapes[0][0] if shapes[0] else 0
    if n == 0 or shapes != ((n, edge, edge, 3), (n, width)):
        raise UntrustedEncoderError(
            f"{card.id}: golden tiles of shape {shapes[0]} with vectors of shape {shapes[1]} do not fit the card "
            f"(tile_px {edge}, width {width}); card and files do not belong together"
        )
    if made_for is not None and made_for != card.fingerprint:
        raise UntrustedEncoderError(
            f"{card.id}: the golden tiles were made for fingerprint {made_for[:12]}, the card gives "
            f"{card.fingerprint[:12]}; the card's input, pooling or precision was changed: install the encoder again"
        )
