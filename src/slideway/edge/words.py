"""Codes of the node in plain words, for a person at the microscope and not for a log."""

from __future__ import annotations

REASONS = {
    "edge-and-cloud": "edge and cloud agree; the answer is in force",
    "edge-alone": "by the edge's opinion alone; the answer is in force",
    "no-head-in-force": "no head is in force for this slide, so a person decides",
    "opinions-contradict": "edge and cloud contradict each other, so a person decides",
    "not-sure": "the opinions are not sure enough, so a person decides",
    "no-tissue": "no tissue was found; a person should look at the glass",
    "rescan": "too little of it can be read; it should be scanned again",
    "cloud-refused-bundle": "the cloud refused its bundle, so a person decides",
    "slide-unreadable": "the file cannot be read",
    "slide-format-unknown": "no reader recognises the file",
    "slide-reader-missing": "its reader is not installed here",
    "slide-broken": "the file is damaged or cut off; copy it again from the scanner",
    "slide-companion-missing": "a file that belongs to it is missing",
    "slide-too-large": "it declares more pixels than any scanner makes",
    "slide-access": "the file may not be read",
    "slide-gone": "the file is not where it was",
    "slide-reader-stopped": "its reader crashed, hung or ran out of memory",
    "resolution-unknown": "nothing states its microns per pixel: a person must give them",
    "reading-too-long": "reading it took too long, again and again",
    "worker-stopped": "it stopped the program that reads it, again and again",
    "out-of-memory": "there was not enough memory for it",
    "enrolled-since": "taken in before this node was enrolled; it is read again for the cloud",
    "folder-away": "the folder it lies in is away",
    "disk-full": "the disk is full",
    "output-not-writable": "the node's folder cannot be written",
    "encoder-unknown": "its encoder is not installed",
    "encoder-untrusted": "its encoder is not what its card says; install it again",
    "encoder-retired": "its encoder was taken out of use",
    "head-unknown": "a head that the settings name is not installed",
    "head-untrusted": "a head is not what its card says; install it again",
    "fingerprint-mismatch": "a head that the settings name is for another encoder",
    "no-process": "the computer starts no further program; it may lack memory",
    "wrong-use": "a setting cannot be met; see the log",
    "store-full": "the disk is full",
    "store-busy": "the store was busy",
    "store-unreachable": "the store does not answer",
}

STATES = {
    "accepted": "taken in",
    "encoded": "read here",
    "sent": "sent",
    "answered": "answered",
    "reported": "reported",
    "referred": "refer",
    "rejected": "rejected",
}

QUESTIONS = {
    "open": "asked",
    "taken": "taken",
    "answered": "answered",
    "withdrawn": "taken back",
}

LINES = {
    "none": "no cloud: this node is not enrolled",
    "stick": "none: what waits leaves on a stick, by `slideway edge export FOLDER`",
    "unknown": "not tried yet",
    "up": "up",
    "down": "down: nobody answers",
    "captive": "blocked: somebody else answers, a login page or a proxy",
    "refused": "the cloud refuses",
    "clock": "this computer's clock is wrong, so the cloud's certificate seems not to be valid: set the clock",
    "revoked": "the cloud has shut this node out; ask its operator",
}

LEVELS = {
    "nothing": "nothing may leave",
    "opinions": "opinions may leave",
    "features": "opinions and features may leave",
    "regions": "opinions, features and single regions may leave",
    "slide": "everything may leave, slides on request",
}


def say_reason(code: str) -> str:
    """A reason in words; the code itself where there are none."""
    return REASONS.get(code, code)


def say_since(seconds: float) -> str:
    """A time in the largest unit that fits.

    Example:
        >>> say_since(42), say_since(3700), say_since(200_000)
        ('42 s', '1 h', '2 days')
    """
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * length if unit == "days" else length):
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def say_bytes(n_bytes: float) -> str:
    """Bytes in the largest unit that fits, decimal.

    Example:
        >>> say_bytes(803), say_bytes(386_188), say_bytes(12_300_000_000)
        ('803 B', '386 kB', '12.3 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB" if n_bytes >= 1000 else f"{n_bytes:.0f} B"
