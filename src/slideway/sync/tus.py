"""The tus 1.0.0 resumable upload protocol, as a server without a web framework.

Source: https://tus.io/protocols/resumable-upload (core; creation, creation-with-upload, checksum, termination,
expiration).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TypeVar

from slideway.core.errors import (
    BlobError,
    BrokenBlobError,
    ConflictError,
    LineRefusedError,
    MissingBlobError,
    SlidewayError,
    StoreError,
)
from slideway.store.uploads import Upload, UploadState
from slideway.sync.outgoing import UploadPlan
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Shelf, Standing

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,termination,expiration"
ALGORITHMS = {"sha256": hashlib.sha256, "sha1": hashlib.sha1}  # sha1 is the one that every server must know
CONTENT_TYPE = "application/offset+octet-stream"
MAX_BYTES = 64 * 2**30
_FLUSH_BYTES = 2**20  # so much is held in memory before it goes to disk, and is synced at once
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{40}")
Result = TypeVar("Result")
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
        self._checksum = None if checksum is None else _Checksum(checksum)

    def write(self, content: bytes) -> None:
        """Take some bytes."""
        if self._trouble is not None:
            return  # read to its end, so that the client hears the answer
        if self._checksum is not None:
            self._checksum.add(content)
            room = (self._upload.length_bytes or 0) - self._upload.offset_bytes
            if self._checksum.n_bytes > room:
                self._trouble = refuse(
                    413, "upload-too-long", f"more bytes than the upload's {self._upload.length_bytes}"
                )
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
                self._trouble = refuse(
                    460, "checksum-mismatch", "the bytes do not have their checksum; send them again"
                )
            else:
                self._buffer = bytearray(self._checksum.content())
        if self._checksum is not None:
            self._checksum.close()
        if self._trouble is None:
            self._flush()
        if self._trouble is not None:
            return self._trouble
        return self._server.answer_settled(self._sender, self._upload, self._status, self._answer)

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
    ) -> None:
        """Serve a shelf.

        Args:
            shelf: Where uploads grow.
            root: Path under which uploads are found.
            max_bytes: Longest file that is taken.
        """
        self.shelf, self._root, self._max_bytes = shelf, root, max_bytes

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

    def head(self, sender: Sender, upload_id: str, headers: Headers) -> Answer:
        """`HEAD`: where to go on, and the receipts of what is durably here."""

        def head() -> Answer:
            _check_version(headers)
            upload = self._find(sender, upload_id)
            answer = {"Cache-Control": "no-store", "Upload-Length": str(upload.length_bytes)}
            return self.answer_settled(sender, upload, 200, answer)

        return self._fenced(None, head)

    def terminate(self, sender: Sender, upload_id: str, headers: Headers) -> Answer:
        """`DELETE`: give an upload up."""

        def terminate() -> Answer:
            _check_version(headers)
            self.shelf.end(self._find(sender, upload_id))
            return Answer(204, {"Tus-Resumable": VERSION})

        return self._fenced(None, terminate)

    def create(self, sender: Sender, headers: Headers, body: Iterable[bytes] = ()) -> Answer:
        """`POST` with its bytes, where they can be waited for."""
        return _receive(self.begin_create(sender, headers), body)

    def patch(self, sender: Sender, upload_id: str, headers: Headers, body: Iterable[bytes] = ()) -> Answer:
        """`PATCH` with its bytes, where they can be waited for."""
        return _receive(self.begin_patch(sender, upload_id, headers), body)

    def answer_settled(self, sender: Sender, upload: Upload, status: int, headers: dict[str, str]) -> Answer:
        """Let what is whole take effect, then answer with offset, receipts and stop."""

        def settle() -> Answer:
            standing = self.shelf.settle(sender, upload)
            return Answer(status, headers | _describe(standing))

        return self._fenced(upload, settle)

    def answer_error(self, error: SlidewayError | OSError, upload: Upload | None) -> Answer:
        """The answer to an error, and what follows from it for the upload."""
        if isinstance(error, LineRefusedError):
            extra = {"Tus-Version": VERSION} if error.status == 412 else {}
            return refuse(error.status, error.refusal, str(error), extra)
        if isinstance(error, OSError):
            return refuse(507, "store-full", "the disk here does not take it; try again later", {"Retry-After": "60"})
        if isinstance(error, MissingBlobError | BrokenBlobError):
            if upload is not None:
                self.shelf.end(upload)
            return refuse(410, error.code, str(error))
        if isinstance(error, StoreError | BlobError):
            return refuse(503, error.code, "this cannot be kept now; try again later", {"Retry-After": "30"})
        if isinstance(error, ConflictError):
            return refuse(409, error.code, str(error))
        if upload is not None:
            self.shelf.end(upload)
        return refuse(422, error.code, str(error))

    def _fenced(self, upload: Upload | None, do: Callable[[], Result]) -> Result | Answer:
        try:
            return do()
        except (SlidewayError, OSError) as error:
            return self.answer_error(error, upload)

    def _create(self, sender: Sender, headers: Headers) -> Reception | Answer:
        _check_version(headers)
        length = _read_number(headers, "upload-length")
        if length > self._max_bytes:
            raise LineRefusedError(f"at most {self._max_bytes} bytes", status=413, refusal="upload-too-long")
        with_bytes = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if with_bytes:
            _check_type(headers)
        checksum = _read_checksum(headers)
        upload = self.shelf.begin(sender, read_plan(headers.get("upload-metadata", ""), length), length)
        answer = {"Location": f"{self._root}/{upload.upload_id}"}
        if not with_bytes or upload.offset_bytes or upload.state is not UploadState.OPEN:
            # What is here already is not taken again: the offset says where to go on.
            return (
                _Deaf(self, sender, upload, answer, 201, None)
                if with_bytes
                else self.answer_settled(sender, upload, 201, answer)
            )
        return Reception(self, sender, upload, answer, 201, checksum)

    def _patch(self, sender: Sender, upload_id: str, headers: Headers) -> Reception | Answer:
        _check_version(headers)
        _check_type(headers)
        offset, checksum = _read_number(headers, "upload-offset"), _read_checksum(headers)
        upload = self._find(sender, upload_id)
        if offset != upload.offset_bytes:
            raise LineRefusedError(
                f"the upload is at byte {upload.offset_bytes}, not at {offset}", status=409, refusal="offset-mismatch"
            )
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and offset + int(declared) > (upload.length_bytes or 0):
            raise LineRefusedError(
                f"more bytes than the upload's {upload.length_bytes}", status=413, refusal="upload-too-long"
            )
        return Reception(self, sender, upload, {}, 204, checksum)

    def _find(self, sender: Sender, upload_id: str) -> Upload:
        upload = self.shelf.find(sender, upload_id) if _UPLOAD_ID.fullmatch(upload_id) else None
        if upload is None:
            raise LineRefusedError("no such upload of this node", status=404, refusal="record-unknown")
        if upload.state is UploadState.ENDED:
            raise LineRefusedError("this upload has ended; begin it again", status=410, refusal="upload-ended")
        return upload


class _Deaf(Reception):
    """Reads bytes that are not needed to their end, so that the client hears the answer."""

    def write(self, content: bytes) -> None:
        """Take nothing."""


class _Checksum:
    """Bytes held back until their checksum is right."""

    def __init__(self, header: str) -> None:
        algorithm, _, value = header.partition(" ")
        self._digest, self._wanted = ALGORITHMS[algorithm](), base64.b64decode(value)
        self._file = tempfile.SpooledTemporaryFile(max_size=4 * _FLUSH_BYTES)  # noqa: SIM115  # closed by the reception
        self.n_bytes = 0

    def add(self, content: bytes) -> None:
        self._digest.update(content)
        self._file.write(content)
        self.n_bytes += len(content)

    def is_right(self) -> bool:
        return self._digest.digest() == self._wanted

    def content(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

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
