"""Which instruction set decides how fast, and how exactly, this processor multiplies whole numbers."""

from __future__ import annotations

import platform
from pathlib import Path

# The best first; a name of Linux's flags, and what it is called on the card.
_X86 = (("avx512_vnni", "avx512_vnni"), ("avx_vnni", "avx_vnni"), ("avx512f", "avx512"), ("avx2", "avx2"))
_ARM = (("i8mm", "neon_i8mm"), ("asimddp", "neon_dotprod"), ("asimd", "neon"))
# Without these, x86 adds products of eight-bit numbers in sixteen bits, and large sums are cut off.
_EXACT = ("avx512_vnni", "avx_vnni")


def name_instruction_set() -> str:
    """The widest instruction set for int8 that this processor has, e.g. `avx512_vnni`, `avx2`, `neon`."""
    flags = _read_flags()
    for flag, name in (*_X86, *_ARM):
        if flag in flags:
            return name
    return platform.machine().lower() or "unknown"


def cuts_off_sums() -> bool:
    """Whether int8 products may be cut off here, so that weights must keep to seven bits."""
    return platform.machine().lower() in ("x86_64", "amd64") and name_instruction_set() not in _EXACT


def _read_flags() -> set[str]:
    """Flags as Linux names them; on other systems what OpenCV finds."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    import cv2

    words: str = cv2.getCPUFeaturesLine()  # a question mark: dispatched, but absent here
    present = {word.strip("*").lower() for word in words.split() if "?" not in word}
    names = {"avx512-skx": "avx512f", "neon": "asimd", "neon_dotprod": "asimddp", "avx512-icl": "avx512_vnni"}
    return {names.get(word, word) for word in present}
