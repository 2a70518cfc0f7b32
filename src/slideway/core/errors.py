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
├── CohortError                     cohort-unusable           a table of cases that nothing can be learnt from
│   └── LeakageError                cohort-leaks              cases or labels would leak from training into the test
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


class CohortError(SlidewayError):
    """A table of cases cannot be learnt from; the message names the lines and what to do."""

    code = "cohort-unusable"
    exit_code = 2


class LeakageError(CohortError):
    """What is asked of a head could be read off something else than tissue, or a case would stand on both sides."""

    code = "cohort-leaks"


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
