"""Linux only: let the reader process open nothing but its slide and the libraries it is made of.

Source: Linux Documentation/userspace-api/landlock.rst; system call numbers are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _SET_NO_NEW_PRIVS = 1, 38
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ALL_RIGHTS = (1 << 13) - 1  # every right of the first Landlock version (Linux 5.13); what is not allowed is denied

# Formats whose slide is more than the file that is named; their parts lie beside it.
_WITH_COMPANIONS = frozenset({".mrxs", ".vms", ".vmu", ".dcm"})
# What libraries look at when they load: other libraries, the processor, randomness.
_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/proc/cpuinfo",
    "/proc/self",
    "/sys/devices/system/cpu",
    "/dev/urandom",
)


def confine_to(slide: Path) -> bool:
    """Deny this process every file but the slide's own and the interpreter's; False where the kernel cannot.

    A file without suffix, or one whose suffix lies, may be a format with companions too: then its folder is not
    readable, and the reader says that a companion is missing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    rights = struct.pack("=Q", _ALL_RIGHTS)
    ruleset = libc.syscall(_CREATE_RULESET, rights, len(rights), 0)
    if ruleset < 0:
        return False
    try:
        for path in [*_parts_of(slide), *_interpreter(), *map(Path, _SYSTEM)]:
            _allow_reading(libc, ruleset, path)
        if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _parts_of(slide: Path) -> list[Path]:
    return [slide, slide.parent] if slide.suffix.lower() in _WITH_COMPANIONS else [slide]


def _interpreter() -> Iterable[Path]:
    """Python itself, and every place it may still import a format's library from."""
    return {Path(place) for place in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if place}


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        handle = os.open(path, os.O_PATH)  # type: ignore[attr-defined,unused-ignore]  # Linux has it
    except OSError:
        return  # not there: nothing to allow
    try:
        rights = _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)
