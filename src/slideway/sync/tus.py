"""The tus 1.0.0 resumable upload protocol, as a server without a web framework.

Source: https://tus.io/protocols/resumable-upload (core; creation, creation-with-upload, checksum, termination,
expiration).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from slideway.core.errors import (
    BlobError,
    BrokenBlobError,
    ConflictError,
    LineRefusedError,
    MissingBlobError,
    NodeRevokedError,
    SlidewayError,
    StoreError,
    UnknownTenantError,
)
from slideway.store.uploads import Upload, UploadState
from slideway.store.work import Work
from slideway.sync.outgoing import UploadPlan
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Seen, Shelf, Standing

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,termination,expiration"
ALGORITHMS = {"sha256": hashlib.sha256, "sha1": hashlib.sha1}  # sha1 is the one that every server must know
CONTENT_TYPE = "application/offset+octet-stream"
MAX_BYTES = 64 * 2**30
MOST_BYTES: Mapping[str, int] = {"bundle": 256 * 2**20, "region": 64 * 2**20, "slide": MAX_BYTES}
"""Longest file of each kind: a bundle and a region are read whole into memory to be verified."""
_FLUSH_BYTES = 2**20  # so much is held in memory before it goes to disk, and is synced at once
_SLICE_BYTES = 64 * 2**20  # so much of a part with a checksum is written in one transaction
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{40}")
_MISMATCH = "the bytes do not have their checksum; send them again"
Result = TypeVar("Result")
Admit = Callable[[Work], Sender]
Headers = Mapping[str, str]
"""Of a request; names in lower case."""


@dataclass(frozen=True)
class Answer:
    """What goes back to the client.

    Attributes:
        status: HTTP status.
        headers: Beside those that the web server adds.
        body: JSON of an error; empty otherwise.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Reception:
    """One request's bytes on their way to an upload; `write` and `finish` may block on the disk."""

    def __init__(
        self,
        server: TusServer,
        sender: Sender,
        upload: Upload,
        answer: dict[str, str],
        status: int,
        checksum: str | None,
    ) -> None:
        self._server, self._sender, self._upload = server, sender, upload
        self._answer, self._status = answer, status
        self._buffer = bytearray()
        self._trouble: Answer | None = None
        self._checksum = None if checksum is None else _Checksum(checksum, server.shelf.folder)

    def write(self, content: bytes) -> None:
        """Take some bytes."""
        if self._trouble is not None:
            return  # read to its end, so that the client hears the answer
        if self._checksum is not None:
            self._hold_back(self._checksum, content)
            return
        self._buffer += content
        if len(self._buffer) >= _FLUSH_BYTES:
            self._flush()

    def cut(self) -> None:
        """The client went away: keep what came, unless a checksum says that only the whole is good."""
        if self._checksum is None and self._trouble is None:
            self._flush()
        if self._checksum is not None:
            self._checksum.close()

    def finish(self) -> Answer:
        """All bytes of the request are here."""
        if self._checksum is not None and self._trouble is None:
            if not self._checksum.is_right():
                self._trouble = refuse(460, "checksum-mismatch", _MISMATCH)
            else:
                self._release(self._checksum)
        if self._checksum is not None:
            self._checksum.close()
        if self._trouble is None:
            self._flush()
        if self._trouble is not None:
            return self._trouble
        return self._server.answer_settled(self._sender, self._upload, self._status, self._answer)

    def _hold_back(self, checksum: _Checksum, content: bytes) -> None:
        try:
            checksum.add(content)
        except OSError as error:
            self._trouble = self._server.answer_error(error, self._upload)
            return
        if checksum.n_bytes > (self._upload.length_bytes or 0) - self._upload.offset_bytes:
            self._trouble = _too_long(self._upload)

    def _release(self, checksum: _Checksum) -> None:
        """Write what turned out right; slice by slice, each durable, so that no transaction is open for minutes."""
        left, source = checksum.n_bytes, checksum.rewind()
        try:
            while left:
                n_bytes = min(left, _SLICE_BYTES)
                at = self._upload.offset_bytes
                self._upload = self._server.shelf.append_from(self._upload, at, source, n_bytes)
                left -= n_bytes
        except (SlidewayError, OSError) as error:
            self._trouble = self._server.answer_error(error, self._upload)

    def _flush(self) -> None:
        content, self._buffer = bytes(self._buffer), bytearray()
        if not content:
            return
        try:
            self._upload = self._server.shelf.append(self._upload, self._upload.offset_bytes, content)
        except (SlidewayError, OSError) as error:
            self._trouble = self._server.answer_error(error, self._upload)


class TusServer:
    """Answers tus requests of nodes whose identity is already known."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        root: str = "/v1/uploads",
        max_bytes: int = MAX_BYTES,
        most_bytes: Mapping[str, int] | None = None,
        takes_nameless: bool = False,
    ) -> None:
        """Serve a shelf.

        Args:
            shelf: Where uploads grow.
            root: Path under which uploads are found.
            max_bytes: Longest file that is taken.
            most_bytes: Longest file of each kind; what is not named here as in `MOST_BYTES`.
            takes_nameless: Take files about which nothing is said. Each is kept as a part file until its node ends it,
                and in no quota: where nobody fetches them, they fill the disk.
        """
        self.shelf, self._root, self._max_bytes = shelf, root, max_bytes
        self._takes_nameless = takes_nameless
        self._most_bytes = {**MOST_BYTES, **(most_bytes or {})}

    def options(self) -> Answer:
        """What this server can do; needs no version header."""
        return Answer(
            204,
            {
                "Tus-Resumable": VERSION,
                "Tus-Version": VERSION,
                "Tus-Extension": EXTENSIONS,
                "Tus-Max-Size": str(self._max_bytes),
                "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
            },
        )

    def begin_create(self, sender: Sender, headers: Headers) -> Reception | Answer:
        """`POST`: make an upload, or find the one of this hash; bytes may come with it."""
        return self._fenced(None, lambda: self._create(sender, headers))

    def begin_patch(self, sender: Sender, upload_id: str, headers: Headers) -> Reception | Answer:
        """`PATCH`: bytes follow."""
        return self._fenced(None, lambda: self._patch(sender, upload_id, headers))

    def terminate(self, sender: Sender, upload_id: str, headers: Headers) -> Answer:
        """`DELETE`: give an upload up."""

        def terminate() -> Answer:
            _check_version(headers)
            self.shelf.give_up(self._find(sender, upload_id))
            return Answer(204, {"Tus-Resumable": VERSION})

        return self._fenced(None, terminate)

    def take_whole(self, tenant: str, admit: Admit, upload_id: str | None, headers: Headers, content: bytes) -> Answer:
        """`POST` (without an id) or `PATCH`, all of whose bytes are here.

        One transaction for who sends, where the upload is, its new bytes and what took effect before; another, with
        what makes the receipt true, for what takes effect now.

        Args:
            tenant: Whose store to look into.
            admit: Says who sends, and raises when that one may not.
            upload_id: None to create.
            headers: Of the request.
            content: Its body, or what came of it when the line broke; with a checksum only a whole one is taken.
        """
        known: list[Upload] = []  # what was there before: an error may end it

        def take(work: Work) -> tuple[Sender, Seen, dict[str, str]]:
            sender = admit(work)
            if upload_id is None:
                upload, is_new = self._begin_in(work, sender, headers)
            else:
                upload, is_new = self._find_in(work, sender, upload_id, headers), False
            known[:] = [] if is_new else [upload]
            extra = {"Location": f"{self._root}/{upload.upload_id}"} if upload_id is None else {}
            if content and (upload_id is not None or (upload.state is UploadState.OPEN and not upload.offset_bytes)):
                upload = self._append_in(work, upload, headers, content)
            return sender, self.shelf.see(work, sender, upload), extra

        try:
            sender, seen, extra = self.shelf.commit(tenant, take)
        except (SlidewayError, OSError) as error:
            return self.answer_error(error, known[0] if known else None)
        return self.answer_settled(sender, seen.upload, 201 if upload_id is None else 204, extra, seen)

    def head_whole(self, tenant: str, admit: Admit, upload_id: str, headers: Headers) -> Answer:
        """`HEAD`: where to go on, and the receipts of what is durably here.

        One look into the store for who asks, where the upload is and what took effect.
        """

        def look(work: Work) -> tuple[Sender, Seen]:
            sender = admit(work)
            _check_version(headers)
            return sender, self.shelf.see(work, sender, self._require(work, sender, upload_id))

        try:
            sender, seen = self.shelf.look(tenant, look)
        except (SlidewayError, OSError) as error:
            return self.answer_error(error, None)
        return self.answer_settled(sender, seen.upload, 200, _describe_length(seen.upload), seen)

    def create(self, sender: Sender, headers: Headers, body: Iterable[bytes] = ()) -> Answer:
        """`POST` with its bytes, where they can be waited for."""
        return _receive(self.begin_create(sender, headers), body)

    def patch(self, sender: Sender, upload_id: str, headers: Headers, body: Iterable[bytes] = ()) -> Answer:
        """`PATCH` with its bytes, where they can be waited for."""
        return _receive(self.begin_patch(sender, upload_id, headers), body)

    def answer_settled(
        self, sender: Sender, upload: Upload, status: int, headers: dict[str, str], seen: Seen | None = None
    ) -> Answer:
        """Let what is whole take effect, then answer with offset, receipts and stop."""

        def settle() -> Answer:
            standing = self.shelf.settle(sender, upload, seen)
            return Answer(status, headers | _describe(standing))

        return self._fenced(upload, settle)

    def answer_error(self, error: SlidewayError | OSError, upload: Upload | None) -> Answer:
        """The answer to an error, and what follows from it for the upload."""
        answer, is_final = _tell(error)
        if is_final and upload is not None:
            self.shelf.end(upload)
        return answer

    def _fenced(self, upload: Upload | None, do: Callable[[], Result]) -> Result | Answer:
        try:
            return do()
        except (SlidewayError, OSError) as error:
            return self.answer_error(error, upload)

    def _create(self, sender: Sender, headers: Headers) -> Reception | Answer:
        plan, length, checksum = self._read_creation(headers)
        with_bytes = _has_body(headers)
        upload = self.shelf.begin(sender, plan, length)
        answer = {"Location": f"{self._root}/{upload.upload_id}"}
        if not with_bytes or upload.offset_bytes or upload.state is not UploadState.OPEN:
            # What is here already is not taken again: the offset says where to go on.
            return (
                _Deaf(self, sender, upload, answer, 201, None)
                if with_bytes
                else self.answer_settled(sender, upload, 201, answer)
            )
        return Reception(self, sender, upload, answer, 201, checksum)

    def _read_creation(self, headers: Headers) -> tuple[UploadPlan | None, int, str | None]:
        """What a `POST` announces: its plan, length and the checksum of the bytes that come along."""
        _check_version(headers)
        length = _read_number(headers, "upload-length")
        self._check_length(length, self._max_bytes, "file")
        if _has_body(headers):
            _check_type(headers)
        checksum, plan = _read_checksum(headers), read_plan(headers.get("upload-metadata", ""), length)
        if plan is not None:
            self._check_length(length, self._most_bytes[plan.kind], plan.kind)
        elif not self._takes_nameless:
            text = "metadata: say what this file is: Upload-Metadata with kind, sha256, slide and tiers"
            raise LineRefusedError(text, status=400, refusal="metadata-wrong")
        return plan, length, checksum

    def _check_length(self, length: int, most: int, kind: str) -> None:
        if length > most:
            text = f"a {kind} of {length:,} bytes; at most {most:,} are taken here"
            raise LineRefusedError(text, status=413, refusal="upload-too-long")

    def _begin_in(self, work: Work, sender: Sender, headers: Headers) -> tuple[Upload, bool]:
        """The upload that a `POST` announces, and whether it is new."""
        plan, length, _ = self._read_creation(headers)
        return self.shelf.begin_in(work, sender, plan, length)

    def _find_in(self, work: Work, sender: Sender, upload_id: str, headers: Headers) -> Upload:
        """The upload that a `PATCH` goes on with, held by this transaction."""
        _check_version(headers)
        _check_type(headers)
        offset = _read_number(headers, "upload-offset")
        _read_checksum(headers)
        upload = self._require(work, sender, upload_id, lock=True)
        _check_place(upload, offset, headers)
        return upload

    def _append_in(self, work: Work, upload: Upload, headers: Headers, content: bytes) -> Upload:
        if upload.offset_bytes + len(content) > (upload.length_bytes or 0):
            raise _say_too_long(upload)
        checksum = _read_checksum(headers)
        if checksum is not None and not _has_checksum(content, checksum):
            raise LineRefusedError(_MISMATCH, status=460, refusal="checksum-mismatch")
        return self.shelf.append_in(work, upload, upload.offset_bytes, io.BytesIO(content), len(content))

    def _require(self, work: Work, sender: Sender, upload_id: str, *, lock: bool = False) -> Upload:
        is_id = _UPLOAD_ID.fullmatch(upload_id)
        return _check_found(self.shelf.find_in(work, sender, upload_id, lock=lock) if is_id else None)

    def _patch(self, sender: Sender, upload_id: str, headers: Headers) -> Reception | Answer:
        _check_version(headers)
        _check_type(headers)
        offset, checksum = _read_number(headers, "upload-offset"), _read_checksum(headers)
        upload = self._find(sender, upload_id)
        _check_place(upload, offset, headers)
        return Reception(self, sender, upload, {}, 204, checksum)

    def _find(self, sender: Sender, upload_id: str) -> Upload:
        return _check_found(self.shelf.find(sender, upload_id) if _UPLOAD_ID.fullmatch(upload_id) else None)


class _Deaf(Reception):
    """Reads bytes that are not needed to their end, so that the client hears the answer."""

    def write(self, content: bytes) -> None:
        """Take nothing."""


class _Checksum:
    """Bytes held back until their checksum is right."""

    def __init__(self, header: str, folder: Path) -> None:
        algorithm, _, value = header.partition(" ")
        self._digest, self._wanted = ALGORITHMS[algorithm](), base64.b64decode(value)
        # Beside the part files: there is space for it, and a folder for temporary files may be in memory.
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115  # closed by the reception
            max_size=4 * _FLUSH_BYTES, dir=str(folder)
        )
        self.n_bytes = 0

    def add(self, content: bytes) -> None:
        self._digest.update(content)
        self._file.write(content)
        self.n_bytes += len(content)

    def is_right(self) -> bool:
        return self._digest.digest() == self._wanted

    def rewind(self) -> BinaryIO:
        """The bytes as a stream, from their first."""
        self._file.seek(0)
        return cast(BinaryIO, self._file)

    def close(self) -> None:
        self._file.close()


def refuse(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as a tus answer with JSON in it."""
    body = json.dumps({"code": code, "message": message}).encode("utf-8")
    return Answer(status, {"Tus-Resumable": VERSION, "Content-Type": "application/json", **(headers or {})}, body)


def read_plan(metadata: str, length_bytes: int) -> UploadPlan | None:
    """What `Upload-Metadata` says of a file; None when it does not say its hash.

    Raises:
        LineRefusedError: It is no metadata, or contradicts itself.
    """
    facts = read_metadata(metadata)
    if "sha256" not in facts:
        return None
    kind, sha256, slide = facts.get("kind", "bundle"), facts["sha256"], facts.get("slide", "")
    ends = facts.get("tiers", str(length_bytes)).split(",")
    fits = _SHA256.fullmatch(sha256) and (not slide or _SHA256.fullmatch(slide)) and len(ends) <= 4
    if not fits or not all(end.isascii() and end.isdigit() and len(end) < 16 for end in ends):
        raise LineRefusedError("metadata: hashes in hex, tiers as in 900,31000", status=400, refusal="metadata-wrong")
    try:
        plan = UploadPlan(kind, sha256, slide, tuple(int(end) for end in ends))
    except ValueError as error:
        raise LineRefusedError(f"metadata: {error}", status=400, refusal="metadata-wrong") from error
    if plan.length_bytes != length_bytes:
        raise LineRefusedError("metadata: the last tier ends where the file does", status=400, refusal="metadata-wrong")
    return plan


def read_metadata(metadata: str) -> dict[str, str]:
    """`Upload-Metadata` as a map; values are base64 on the line.

    Raises:
        LineRefusedError: It is malformed.
    """
    facts: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in metadata.split(","))):
        key, _, value = pair.partition(" ")
        try:
            text = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, ValueError) as error:
            raise LineRefusedError(
                f"metadata: {key!r:.40} is not base64", status=400, refusal="metadata-wrong"
            ) from error
        if key in facts:
            raise LineRefusedError(f"metadata: {key!r:.40} twice", status=400, refusal="metadata-wrong")
        facts[key] = text
    return facts


def write_metadata(facts: Mapping[str, str]) -> str:
    """A map as `Upload-Metadata`."""
    return ",".join(
        f"{key} {base64.b64encode(value.encode('utf-8')).decode('ascii')}".rstrip() for key, value in facts.items()
    )


def metadata_of(plan: UploadPlan) -> str:
    """What is said of a file when its upload begins."""
    facts = {"kind": plan.kind, "sha256": plan.sha256, "tiers": ",".join(map(str, plan.ends_bytes))}
    return write_metadata(facts | ({"slide": plan.slide} if plan.slide else {}))


def write_checksum(content: bytes) -> str:
    """`Upload-Checksum` of some bytes."""
    return f"sha256 {base64.b64encode(hashlib.sha256(content).digest()).decode('ascii')}"


def write_receipts(receipts: Mapping[int, str]) -> str:
    """Receipts of tiers as one header, e.g. `t0 …, t1 …`."""
    return ", ".join(f"t{tier} {receipt}" for tier, receipt in sorted(receipts.items()))


def read_receipts(header: str) -> dict[int, str]:
    """What `write_receipts` wrote; what cannot be read is left out: it is no receipt."""
    found: dict[int, str] = {}
    for part in header.split(","):
        tier, _, receipt = part.strip().partition(" ")
        if len(tier) == 2 and tier[0] == "t" and tier[1].isascii() and tier[1].isdigit():
            found[int(tier[1])] = receipt
    return found


def _describe(standing: Standing) -> dict[str, str]:
    upload = standing.upload
    headers = {"Tus-Resumable": VERSION, "Upload-Offset": str(upload.offset_bytes)}
    if upload.state is UploadState.OPEN:
        headers["Upload-Expires"] = formatdate(upload.expires_ms / 1000, usegmt=True)
    if standing.receipts:
        headers["Slideway-Receipt"] = write_receipts(standing.receipts)
    if standing.stop is not None:
        headers["Slideway-Stop"] = str(standing.stop)
    return headers


def _receive(reception: Reception | Answer, body: Iterable[bytes]) -> Answer:
    if isinstance(reception, Answer):
        return reception
    try:
        for chunk in body:
            reception.write(chunk)
    except ConnectionError:
        reception.cut()
        raise
    return reception.finish()


def _check_found(upload: Upload | None) -> Upload:
    if upload is None:
        raise LineRefusedError("no such upload of this node", status=404, refusal="record-unknown")
    if upload.state is UploadState.ENDED:
        raise LineRefusedError("this upload has ended; begin it again", status=410, refusal="upload-ended")
    return upload


def _check_place(upload: Upload, offset: int, headers: Headers) -> None:
    """Bytes go on where the upload is, and fit."""
    if offset != upload.offset_bytes:
        raise LineRefusedError(
            f"the upload is at byte {upload.offset_bytes}, not at {offset}", status=409, refusal="offset-mismatch"
        )
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and offset + int(declared) > (upload.length_bytes or 0):
        raise _say_too_long(upload)


def _say_too_long(upload: Upload) -> LineRefusedError:
    text = f"more bytes than the upload's {upload.length_bytes}"
    return LineRefusedError(text, status=413, refusal="upload-too-long")


def _too_long(upload: Upload) -> Answer:
    error = _say_too_long(upload)
    return refuse(error.status, error.refusal, str(error))


def _has_checksum(content: bytes, header: str) -> bool:
    algorithm, _, value = header.partition(" ")
    return ALGORITHMS[algorithm](content).digest() == base64.b64decode(value)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _describe_length(upload: Upload) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Upload-Length": str(upload.length_bytes)}


def _tell(error: SlidewayError | OSError) -> tuple[Answer, bool]:
    """The answer to an error, and whether it ends its upload."""
    if isinstance(error, OSError):
        text = "the disk here does not take it; try again later"
        return refuse(507, "store-full", text, {"Retry-After": "60"}), False
    text = str(error)
    if isinstance(error, LineRefusedError):
        return refuse(error.status, error.refusal, text, _explain(error)), False
    if isinstance(error, UnknownTenantError):  # a token of a store that is gone
        return refuse(401, "token-invalid", "begin a new session", {"WWW-Authenticate": "Bearer"}), False
    status, is_final = 422, True
    more: dict[str, str] = {}
    if isinstance(error, NodeRevokedError):
        status, is_final = 403, False
    elif isinstance(error, MissingBlobError | BrokenBlobError):
        status = 410
    elif isinstance(error, StoreError | BlobError):
        status, is_final, text, more = 503, False, "this cannot be kept now; try again later", {"Retry-After": "30"}
    elif isinstance(error, ConflictError):
        status, is_final = 409, False
    return refuse(status, error.code, text, more), is_final


def _explain(error: LineRefusedError) -> dict[str, str]:
    """Headers that a refusal brings along."""
    more = {412: {"Tus-Version": VERSION}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status, {})
    return more if error.wait_seconds is None else {**more, "Retry-After": str(error.wait_seconds)}


def _check_version(headers: Headers) -> None:
    if headers.get("tus-resumable") != VERSION:
        raise LineRefusedError(f"Tus-Resumable: {VERSION} is spoken here", status=412, refusal="tus-version")


def _check_type(headers: Headers) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise LineRefusedError(f"Content-Type: {CONTENT_TYPE} is expected", status=415, refusal="content-type")


def _read_number(headers: Headers, name: str) -> int:
    text = headers.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise LineRefusedError(f"{name}: a whole number of bytes", status=400, refusal="header-wrong")
    return int(text)


def _read_checksum(headers: Headers) -> str | None:
    header = headers.get("upload-checksum")
    if header is None:
        return None
    algorithm, _, value = header.partition(" ")
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LineRefusedError("Upload-Checksum: not base64", status=400, refusal="checksum-wrong") from error
    if algorithm not in ALGORITHMS:
        raise LineRefusedError(
            f"Upload-Checksum: {', '.join(ALGORITHMS)} are known here", status=400, refusal="checksum-unknown"
        )
    return header
