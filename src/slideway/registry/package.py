"""One signed file with a whole model, for hospitals without a network: `.swm`, a plain tar with a fixed order.

`manifest.json` (names, sizes and sha256 of all that follows), `manifest.sig` (Ed25519 over the manifest's bytes),
`signer.pub` (the signer's public key, PEM), then the model's files, the card first. Every header is the one that this
module would write for that name and size, padding is zero, nothing follows: so a package has exactly one spelling, and
any other bit is refused. Any tar reads it, and `openssl pkeyutl -verify` its signature (docs/models.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slideway.core.errors import BrokenPackageError, UntrustedEncoderError, UntrustedPackageError, WrongUseError
from slideway.registry.blobs import hash_file
from slideway.registry.keys import SigningKey, TrustedKey, parse_public_key, require_trusted
from slideway.registry.records import CARD_FILE, ModelCard
from slideway.registry.staging import require_space, write_fence
from slideway.registry.store import (
    Check,
    Progress,
    already_installed,
    require_free_place,
    settle_model,
    stage_model,
)
from slideway.registry.verify import require_golden_stamp, verify_files

SUFFIX = ".swm"
FORMAT = "slideway-model"
VERSION = "1.0"
_VERSION_MAJOR = 1
_MANIFEST, _SIGNATURE, _SIGNER = "manifest.json", "manifest.sig", "signer.pub"
_MAX_SMALL_BYTES = 1_000_000  # of what is read before the signature is known to be good
_BLOCK = 512  # of a tar
_COPY_BYTES = 1 << 20
_END = bytes(2 * _BLOCK)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class PackedFile:
    """One file of a model as the manifest lists it.

    Attributes:
        name: Its name; never a path.
        bytes: Its size.
        sha256: Its hash.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in a package.

    Attributes:
        id: Id of the model.
        fingerprint: Fingerprint of its card.
        files: Its files in the order of the package.
        signer: Who signed it; trusted.
    """

    id: str
    fingerprint: str
    files: tuple[PackedFile, ...]
    signer: TrustedKey


def export_model(card: ModelCard, path: Path, *, key: SigningKey, progress: Progress | None = None) -> None:
    """Write a model as one signed file, all or nothing; the same model and key always give the same bytes.

    Raises:
        UntrustedEncoderError: A file of the model is not the one its card names.
        OutputError: The file cannot be written, or the disk is full.
    """
    verify_files(card)
    require_golden_stamp(card)
    files = [_describe_file(card, name) for name in card.file_names]
    manifest = _dump_manifest(card, files)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with write_fence(path.parent):
        try:
            with part.open("wb") as out:
                _write_small(out, _MANIFEST, manifest)
                _write_small(out, _SIGNATURE, key.sign(manifest))
                _write_small(out, _SIGNER, key.public.pem)
                _write_files(out, card, files, progress)
                out.write(_END)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def read_manifest(path: Path, *, trusted: Sequence[TrustedKey]) -> Manifest:
    """Read and check what stands at the head of a package: format, signer, signature, size of the whole file.

    Raises:
        BrokenPackageError: Not a package, cut off, of a newer major version, or not as long as it says.
        UntrustedPackageError: Not signed, not by a trusted key, or not this manifest.
    """
    with _open(path) as file:
        return _read_head(file, path, trusted)


def import_model(
    path: Path,
    *,
    trusted: Sequence[TrustedKey],
    replace: bool = False,
    check: Check | None = None,
    progress: Progress | None = None,
) -> ModelCard:
    """Install a model from a package; nothing of it is unpacked before its signature is known to be good.

    Args:
        path: The package.
        trusted: Keys whose packages are believed, see `list_trusted`.
        replace: Let it take the place of another model of the same id.
        check: Called with the card of the unpacked model before it is put in place; what it raises stops the import.
        progress: Told bytes done and bytes in all.

    Raises:
        BrokenPackageError: Not a package, cut off, changed, or of a newer major version.
        UntrustedPackageError: Not signed, not by a trusted key, or changed after it was signed.
        UntrustedEncoderError: The model in it does not agree with its card.
        WrongUseError: Another model has this id.
        OutputError: The models' folder cannot be written, or the disk is full; nothing half-written stays.
    """
    with _open(path) as file:
        manifest = _read_head(file, path, trusted)
        if not replace and (installed := already_installed(manifest.id, manifest.fingerprint)) is not None:
            return installed
        require_free_place(manifest.id, manifest.fingerprint, replace=replace)
        with stage_model(manifest.id) as staging:
            require_space(staging.path, sum(entry.bytes for entry in manifest.files))
            _unpack(file, manifest, staging.path, path.name, progress)
            return settle_model(staging, manifest.id, lambda card: _check_card(card, manifest, path.name, check))


def _check_card(card: ModelCard, manifest: Manifest, name: str, check: Check | None) -> None:
    if card.fingerprint != manifest.fingerprint or card.file_names != tuple(entry.name for entry in manifest.files):
        raise UntrustedEncoderError(
            f"{name}: the manifest lists another model than its card describes; export it again"
        )
    if check is not None:
        check(card)


def _describe_file(card: ModelCard, name: str) -> PackedFile:
    path = card.folder / name
    try:
        return PackedFile(name, path.stat().st_size, hash_file(path))
    except OSError as error:
        raise UntrustedEncoderError(f"{card.id}: {name} cannot be read ({error.strerror}); install it again") from error


def _dump_manifest(card: ModelCard, files: Sequence[PackedFile]) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "id": card.id,
        "fingerprint": card.fingerprint,
        "files": [{"name": entry.name, "bytes": entry.bytes, "sha256": entry.sha256} for entry in files],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _write_files(out: BinaryIO, card: ModelCard, files: Sequence[PackedFile], progress: Progress | None) -> None:
    done, total = 0, sum(entry.bytes for entry in files)
    for entry in files:
        out.write(tar_header(entry.name, entry.bytes))
        digest, written = hashlib.sha256(), 0
        with (card.folder / entry.name).open("rb") as source:
            while block := source.read(_COPY_BYTES):
                out.write(block)
                digest.update(block)
                written += len(block)
                if progress is not None:
                    progress(done + written, total)
        if digest.hexdigest() != entry.sha256:
            raise UntrustedEncoderError(f"{card.id}: {entry.name} changed while it was packed; try again")
        out.write(_padding(entry.bytes))
        done += entry.bytes


def _write_small(out: BinaryIO, name: str, content: bytes) -> None:
    out.write(tar_header(name, len(content)) + content + _padding(len(content)))


def tar_header(name: str, n_bytes: int) -> bytes:
    """The 512 bytes before a regular file in a tar (POSIX ustar), everything but name and size fixed."""
    # Over 8 GiB the size does not fit into 11 octal digits; GNU's base-256 form is read by every tar since 1999.
    size = b"%011o\0" % n_bytes if n_bytes < 8**11 else b"\x80" + n_bytes.to_bytes(11, "big")
    head = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"%011o\0" % 0
    tail = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    checksum = sum(head) + sum(tail) + 8 * ord(" ")
    return head + b"%06o\0 " % checksum + tail


def _padding(n_bytes: int) -> bytes:
    return bytes(-n_bytes % _BLOCK)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise WrongUseError(f"{path.name}: this package cannot be read ({error.strerror}); check the path") from error


def _read_head(file: BinaryIO, path: Path, trusted: Sequence[TrustedKey]) -> Manifest:
    name = path.name
    content = _read_small(file, name, _MANIFEST)
    fields = _load_manifest(content, name)
    signature = _read_small(file, name, _SIGNATURE)
    signer = TrustedKey("signer", _parse_signer(_read_small(file, name, _SIGNER), name))
    signer = require_trusted(name, signer, trusted)
    if not signer.has_signed(signature, content):
        raise UntrustedPackageError(
            f"{name}: its signature by {signer.name!r} does not fit its manifest: it was changed after it was signed, "
            "or damaged on the way; copy it again, and if that does not help, ask the sender"
        )
    manifest = _build_manifest(fields, name, signer)
    expected = file.tell() + sum(_BLOCK + entry.bytes + len(_padding(entry.bytes)) for entry in manifest.files)
    _require_length(name, os.fstat(file.fileno()).st_size, expected + len(_END))
    return manifest


def _parse_signer(pem: bytes, name: str) -> bytes:
    try:
        raw = parse_public_key(pem, _SIGNER)
    except WrongUseError as error:
        raise BrokenPackageError(f"{name}: {error}") from error
    if TrustedKey("signer", raw).pem != pem:  # PEM has many spellings of one key; a package has one
        raise BrokenPackageError(f"{name}: its {_SIGNER} is spelled in another form than ours; damaged or hostile")
    return raw


def _require_length(name: str, found: int, expected: int) -> None:
    if found != expected:
        words = "was cut off" if found < expected else "has something after its end"
        raise BrokenPackageError(
            f"{name}: {found:,} bytes, its manifest promises {expected:,}: it {words}; copy it again"
        )


def _load_manifest(content: bytes, name: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
        parts = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", fields["version"])
        if fields["format"] != FORMAT or parts is None:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenPackageError(
            f"{name}: its manifest is not that of a Slideway model ({error}); damaged, or made by another program"
        ) from error
    if int(parts[1]) != _VERSION_MAJOR:
        raise BrokenPackageError(
            f"{name}: package version {fields['version']}, this Slideway reads {_VERSION_MAJOR}.x; update Slideway"
        )
    return dict(fields)


def _build_manifest(fields: dict[str, Any], name: str, signer: TrustedKey) -> Manifest:
    """Believed by now, since it is signed; read strictly all the same: the signer's computer may have been misused."""
    try:
        files = tuple(PackedFile(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in fields["files"])
        id_, fingerprint = str(fields["id"]), str(fields["fingerprint"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BrokenPackageError(
            f"{name}: its manifest lacks an entry ({error}); ask the sender for a new one"
        ) from error
    names = [entry.name for entry in files]
    is_whole = names[:1] == [CARD_FILE] and len({n.casefold() for n in names}) == len(names)
    is_safe = all(_NAME.fullmatch(n) for n in names) and all(entry.bytes >= 0 for entry in files)
    if not is_whole or not is_safe or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", id_):
        raise BrokenPackageError(f"{name}: its manifest lists names that no model has; ask the sender for a new one")
    return Manifest(id_, fingerprint, files, signer)


def _read_small(file: BinaryIO, name: str, member: str) -> bytes:
    header = _take(file, _BLOCK, name)
    found, n_bytes = _read_header(header)
    if found != member:
        if member == _MANIFEST:
            raise BrokenPackageError(f"{name}: not a Slideway model package; it should begin with {_MANIFEST}")
        raise UntrustedPackageError(
            f"{name}: the package is not signed ({member} is missing after its manifest); ask the sender to export it "
            "with `slideway models export`"
        )
    if n_bytes > _MAX_SMALL_BYTES:
        raise BrokenPackageError(f"{name}: its {member} is {n_bytes:,} bytes long, which none is; damaged or hostile")
    _require_header(header, member, n_bytes, name)
    content = _take(file, n_bytes, name)
    _require_zeros(_take(file, len(_padding(n_bytes)), name), name)
    return content


def _read_header(header: bytes) -> tuple[str, int]:
    """Name and size of what follows; the size is -1 where it is no octal number."""
    found = header[:100].rstrip(b"\0").decode("ascii", "replace")
    digits = header[124:135]
    return found, int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else -1


def _require_header(header: bytes, member: str, n_bytes: int, name: str) -> None:
    if n_bytes < 0 or header != tar_header(member, n_bytes):
        found = _read_header(header)[0]
        what = f"an entry {found[:80]!r} where {member} should be" if found != member else f"{member} in another form"
        raise BrokenPackageError(
            f"{name}: holds {what}; paths, links, further files and other sizes are refused: damaged or hostile"
        )


def _require_zeros(padding: bytes, name: str) -> None:
    if any(padding):
        raise BrokenPackageError(f"{name}: something stands between its files; damaged or hostile")


def _take(file: BinaryIO, n_bytes: int, name: str) -> bytes:
    content = file.read(n_bytes)
    if len(content) < n_bytes:
        raise BrokenPackageError(f"{name}: not a whole package, it was cut off; copy it again")
    return content


def _unpack(file: BinaryIO, manifest: Manifest, folder: Path, name: str, progress: Progress | None) -> None:
    done, total = 0, sum(entry.bytes for entry in manifest.files)
    for entry in manifest.files:
        _require_header(_take(file, _BLOCK, name), entry.name, entry.bytes, name)
        report = None if progress is None else _from(done, total, progress)
        _unpack_file(file, entry, folder / entry.name, name, report)
        _require_zeros(_take(file, len(_padding(entry.bytes)), name), name)
        done += entry.bytes
    _require_zeros(_take(file, len(_END), name), name)


def _from(start: int, total: int, progress: Progress) -> Callable[[int], object]:
    return lambda done: progress(start + done, total)


def _unpack_file(
    file: BinaryIO, entry: PackedFile, target: Path, name: str, report: Callable[[int], object] | None
) -> None:
    digest, left = hashlib.sha256(), entry.bytes
    with target.open("xb") as out:
        while left:
            block = _take(file, min(left, _COPY_BYTES), name)
            out.write(block)
            digest.update(block)
            left -= len(block)
            if report is not None:
                report(entry.bytes - left)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != entry.sha256:
        raise BrokenPackageError(
            f"{name}: {entry.name} is not the file that was signed; damaged on the way: copy it again"
        )
