"""Every way Slideway can refuse, as one tree; each error says what, where and what now.

```
SlidewayError
├── UnreadableSlideError            slide-unreadable          the file cannot be read as a slide
│   ├── UnknownFormatError          slide-format-unknown      no reader recognises it
│   ├── MissingReaderError          slide-reader-missing      a reader exists but its extra is not installed
│   ├── BrokenSlideError            slide-broken              truncated, damaged or contradicting itself
│   ├── MissingCompanionError       slide-companion-missing   a file that belongs to it is not there
│   ├── SlideAccessError            slide-access              not found, or no permission
│   ├── SlideTooLargeError          slide-too-large           declares more pixels than any scanner makes
│   └── ReaderStoppedError          slide-reader-stopped      the sandboxed reader crashed, hung or ran out of memory
├── UnknownResolutionError          resolution-unknown        no microns per pixel: a person must decide
├── UnknownEncoderError             encoder-unknown           no such encoder
├── UntrustedEncoderError           encoder-untrusted         card, hash or golden tiles do not agree
│   ├── RetiredEncoderError         encoder-retired           it was taken out of use
│   └── UntrustedPackageError       package-untrusted         a model package is not signed by a trusted key
├── UnknownHeadError                head-unknown              no such head
├── UntrustedHeadError              head-untrusted            a head's card, hash or golden bag do not agree
├── BrokenPackageError              package-broken            not a model package, cut off, changed, or too new
├── UnreadableCheckpointError       checkpoint-unreadable     not a checkpoint, dangerous, or not of the slot's form
├── ModelUnavailableError           model-unavailable         the hub does not give the model
├── FingerprintMismatchError        fingerprint-mismatch      embeddings of two encoders would have met
├── UnreadableBagError              bag-unreadable            not a bag, damaged, or of a newer major version
├── BrokenBundleError               bundle-broken             not a case bundle, cut off, changed, or too new
├── LockedBundleError               bundle-locked             encrypted to a key that is not here
├── UntrustedBundleError            bundle-untrusted          not signed by a node that is trusted
├── PolicyError                     policy-refuses            the policy does not let this leave
├── StoreError                      store-failed              the store cannot be opened or written
│   ├── NewerStoreError             store-newer               written by a newer version; never taken back
│   ├── OlderStoreError             store-older               must be migrated first, with a backup
│   ├── LockedStoreError            store-locked              another process writes it
│   ├── BusyStoreError              store-busy                another transaction is in the way for too long
│   ├── CorruptStoreError           store-corrupt             the file is damaged; set aside, never overwritten
│   ├── FullStoreError              store-full                the disk is full; what was written is kept
│   ├── UnreachableStoreError       store-unreachable         the database or folder does not answer
│   └── UnsafeRoleError             store-role-unsafe         the database role could read across tenants
├── RecordError                     record-refused            the store's rules do not let this be written
│   ├── UnknownTenantError          tenant-unknown            no such tenant
│   ├── UnknownRecordError          record-unknown            nothing of this key for this tenant
│   ├── ConflictError               record-conflict           something else is kept under this key already
│   ├── TransitionError             transition-refused        from this state nothing leads there
│   ├── LeaseLostError              lease-lost                the job went to another worker meanwhile
│   └── MessageTooLargeError        message-too-large         no receiver would take a message of this size
├── BrokenChainError                audit-broken              an audit entry is not what was written
├── BlobError                       blob-failed               the blob store does not answer, or is full
│   ├── MissingBlobError            blob-missing              no blob of this hash for this tenant
│   └── BrokenBlobError             blob-broken               bytes do not have the hash that they should
├── LineError                       line-failed               the line to the other side does not work
│   ├── LineDownError               line-down                 nobody answers, or not now
│   ├── CaptivePortalError          line-captive              somebody else answers: a portal, a proxy, a wrong server
│   ├── ClockWrongError             clock-wrong               a certificate does not hold at this computer's time
│   ├── LineRefusedError            line-refused              the other side refuses this request
│   └── NodeRevokedError            node-revoked              the other side no longer takes anything of this node
├── InvalidReceiptError             receipt-invalid           a receipt that the other side did not sign for this
├── BrokenPacketError               packet-broken             a file on a stick that is no packet for us, or not whole
├── CohortError                     cohort-unusable           a table of cases that nothing can be learnt from
│   └── LeakageError                cohort-leaks              cases or labels would leak from training into the test
├── DeidentifyError                 deidentify-refused        a slide whose identifiers cannot be removed with certainty
├── OutputError                     output-not-writable       the output folder cannot be written
│   └── DiskFullError               disk-full                 the disk filled up while writing
├── DownloadError                   download-failed           the demo slide could not be fetched or verified
└── WrongUseError                   wrong-use                 arguments that cannot be met
```

Messages name files by their name only and never repeat metadata of a slide: it may identify a patient.
"""

from __future__ import annotations

from typing import ClassVar


class SlidewayError(Exception):
    """Root of everything Slideway raises on purpose.

    Attributes:
        code: Stable word for logs, worklists and `docs/errors.md`.
        exit_code: What the command line ends with when this error ends the run.
    """

    code: ClassVar[str] = "slideway"
    exit_code: ClassVar[int] = 1


class UnreadableSlideError(SlidewayError):
    """The file cannot be read as a slide; the message names the true cause."""

    code = "slide-unreadable"
    exit_code = 3


class UnknownFormatError(UnreadableSlideError):
    """No installed reader recognises the file."""

    code = "slide-format-unknown"


class MissingReaderError(UnreadableSlideError):
    """The format is known, but its optional reader is not installed."""

    code = "slide-reader-missing"


class BrokenSlideError(UnreadableSlideError):
    """The file is truncated, damaged, or contradicts itself."""

    code = "slide-broken"


class MissingCompanionError(UnreadableSlideError):
    """A file that belongs to the slide (a data file, an index) is not beside it."""

    code = "slide-companion-missing"


class SlideAccessError(UnreadableSlideError):
    """The file is not there, or this user may not read it."""

    code = "slide-access"


class SlideTooLargeError(UnreadableSlideError):
    """The header declares more pixels than any scanner makes."""

    code = "slide-too-large"


class ReaderStoppedError(UnreadableSlideError):
    """The sandboxed reader process crashed, hung, or went over its memory limit."""

    code = "slide-reader-stopped"


class UnknownResolutionError(SlidewayError):
    """The slide states no microns per pixel; a person must give or accept one."""

    code = "resolution-unknown"
    exit_code = 4


class UnknownEncoderError(SlidewayError):
    """No encoder of that id is installed."""

    code = "encoder-unknown"
    exit_code = 2


class UntrustedEncoderError(SlidewayError):
    """An encoder's card, weights or golden tiles do not agree with each other."""

    code = "encoder-untrusted"
    exit_code = 2


class RetiredEncoderError(UntrustedEncoderError):
    """The encoder was taken out of use; its stored embeddings can still be read."""

    code = "encoder-retired"


class UntrustedPackageError(UntrustedEncoderError):
    """A model package carries no signature, a wrong one, or one of a key that is not trusted here."""

    code = "package-untrusted"


class UnknownHeadError(SlidewayError):
    """No head of that id is installed."""

    code = "head-unknown"
    exit_code = 2


class UntrustedHeadError(SlidewayError):
    """A head's card, weights or golden bag do not agree with each other, or it reads another encoder's bags."""

    code = "head-untrusted"
    exit_code = 2


class BrokenPackageError(SlidewayError):
    """The file is not a model package, is cut off or changed, or is of a newer major version."""

    code = "package-broken"
    exit_code = 3


class UnreadableCheckpointError(SlidewayError):
    """A checkpoint holds something else than tensors, is damaged, or does not have the form of the slot."""

    code = "checkpoint-unreadable"
    exit_code = 3


class ModelUnavailableError(SlidewayError):
    """A model could not be had from the hub: gated, not found, unreachable, or the client is not installed."""

    code = "model-unavailable"
    exit_code = 6


class FingerprintMismatchError(SlidewayError):
    """Embeddings of two different encoders would have met in one comparison (invariant I7)."""

    code = "fingerprint-mismatch"
    exit_code = 2


class UnreadableBagError(SlidewayError):
    """The file is not a bag, is damaged, or was written by a newer major version."""

    code = "bag-unreadable"
    exit_code = 3


class BrokenBundleError(SlidewayError):
    """The file is not a case bundle, was cut off before its first part, was changed, or is of a newer major version."""

    code = "bundle-broken"
    exit_code = 3


class LockedBundleError(SlidewayError):
    """The bundle is encrypted to a receiver whose private key is not here."""

    code = "bundle-locked"
    exit_code = 3


class UntrustedBundleError(SlidewayError):
    """The bundle is not signed, or by a key that is not trusted."""

    code = "bundle-untrusted"
    exit_code = 2


class PolicyError(SlidewayError):
    """The policy does not let this leave, or cannot be read; then nothing leaves."""

    code = "policy-refuses"
    exit_code = 4


class StoreError(SlidewayError):
    """The store cannot be opened or written; the message says why."""

    code = "store-failed"
    exit_code = 6


class NewerStoreError(StoreError):
    """The store was written by a newer version of Slideway; a store is never taken back."""

    code = "store-newer"
    exit_code = 2


class OlderStoreError(StoreError):
    """The store must be migrated first, and has no backup yet or was not to be migrated."""

    code = "store-older"
    exit_code = 4


class LockedStoreError(StoreError):
    """Another process has the store open for writing."""

    code = "store-locked"
    exit_code = 2


class BusyStoreError(StoreError):
    """Another transaction holds what this one needs; nothing was written, try again."""

    code = "store-busy"


class CorruptStoreError(StoreError):
    """The store's file is damaged; it was set aside and never overwritten."""

    code = "store-corrupt"


class FullStoreError(StoreError):
    """The store's disk is full; nothing of this was written, what was written before is kept."""

    code = "store-full"


class UnreachableStoreError(StoreError):
    """The database, or the folder of the store, does not answer."""

    code = "store-unreachable"


class UnsafeRoleError(StoreError):
    """The database role passes by row-level security, so one tenant could read another."""

    code = "store-role-unsafe"
    exit_code = 2


class RecordError(SlidewayError):
    """The store's rules do not let this be written or read."""

    code = "record-refused"


class UnknownTenantError(RecordError):
    """No tenant of that name."""

    code = "tenant-unknown"
    exit_code = 2


class UnknownRecordError(RecordError):
    """Nothing is kept under this key for this tenant."""

    code = "record-unknown"
    exit_code = 2


class ConflictError(RecordError):
    """Something else is kept under this key already; it stays."""

    code = "record-conflict"


class TransitionError(RecordError):
    """From the state it is in, nothing leads where it was to go."""

    code = "transition-refused"


class LeaseLostError(RecordError):
    """The job went to another worker meanwhile; what was done under the old lease counts for nothing."""

    code = "lease-lost"


class MessageTooLargeError(RecordError):
    """A message has more bytes than any receiver takes; it was not put into the outbox."""

    code = "message-too-large"


class BrokenChainError(SlidewayError):
    """An entry of the audit is not what was written."""

    code = "audit-broken"
    exit_code = 3


class BlobError(SlidewayError):
    """The place where blobs are kept does not answer, or is full."""

    code = "blob-failed"
    exit_code = 6


class MissingBlobError(BlobError):
    """No blob of this hash for this tenant."""

    code = "blob-missing"
    exit_code = 3


class BrokenBlobError(BlobError):
    """Bytes do not have the hash that they should have."""

    code = "blob-broken"
    exit_code = 3


class LineError(SlidewayError):
    """The line to the other side does not work; what was to leave stays here and waits."""

    code = "line-failed"
    exit_code = 6


class LineDownError(LineError):
    """Nobody answers, or says that it cannot now.

    Attributes:
        retry_after_seconds: What the other side asked for; None when it asked for nothing.
    """

    code = "line-down"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CaptivePortalError(LineError):
    """Somebody else answers in place of the other side: a portal that wants a login, a proxy, a wrong server."""

    code = "line-captive"


class ClockWrongError(LineError):
    """The other side's certificate does not hold at the time that this computer's clock tells: one of them is wrong."""

    code = "clock-wrong"


class LineRefusedError(LineError):
    """The other side understood the request and refuses it.

    Attributes:
        status: HTTP status.
        refusal: The other side's own code, e.g. `bundle-untrusted`; empty when it gave none.
        wait_seconds: When this may be asked for again; None when it did not say.
    """

    code = "line-refused"

    def __init__(self, message: str, *, status: int = 0, refusal: str = "", wait_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.refusal, self.wait_seconds = status, refusal, wait_seconds


class NodeRevokedError(LineError):
    """The other side no longer takes anything of this node; a person there decided it."""

    code = "node-revoked"
    exit_code = 4


class InvalidReceiptError(SlidewayError):
    """A receipt is not what the other side signs for this content; nothing counts as acknowledged."""

    code = "receipt-invalid"
    exit_code = 2


class BrokenPacketError(SlidewayError):
    """A file in a transport folder is no packet for us, not whole, or not signed by whom it names."""

    code = "packet-broken"
    exit_code = 3


class CohortError(SlidewayError):
    """A table of cases cannot be learnt from; the message names the lines and what to do."""

    code = "cohort-unusable"
    exit_code = 2


class LeakageError(CohortError):
    """What is asked of a head could be read off something else than tissue, or a case would stand on both sides."""

    code = "cohort-leaks"


class DeidentifyError(SlidewayError):
    """A slide's identifiers cannot be removed with certainty; nothing was written."""

    code = "deidentify-refused"
    exit_code = 3


class OutputError(SlidewayError):
    """The output folder cannot be written."""

    code = "output-not-writable"
    exit_code = 2


class DiskFullError(OutputError):
    """The disk filled up while writing; what was half-written has been removed."""

    code = "disk-full"
    exit_code = 6


class DownloadError(SlidewayError):
    """The demo slide could not be fetched, or is not the file it should be."""

    code = "download-failed"
    exit_code = 6


class WrongUseError(SlidewayError):
    """Arguments that cannot be met together, or at all."""

    code = "wrong-use"
    exit_code = 2
