"""Windows only: put the reader process into a job object that caps its memory and allows it no children.

Written against the documented API; not yet run on Windows (see docs/platforms.md).
Source: Microsoft Learn, "Job Objects", JOBOBJECT_EXTENDED_LIMIT_INFORMATION.
"""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

_ACTIVE_PROCESS, _PROCESS_MEMORY, _KILL_ON_CLOSE = 0x8, 0x100, 0x2000
_EXTENDED_LIMIT_INFORMATION = 9


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("per_process_user_time", ctypes.c_int64),
        ("per_job_user_time", ctypes.c_int64),
        ("limit_flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_process_limit", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority_class", ctypes.c_uint32),
        ("scheduling_class", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("basic", _BasicLimits),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory_limit", ctypes.c_size_t),
        ("job_memory_limit", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


def confine(process: subprocess.Popen[bytes], memory_limit_bytes: int) -> None:
    """Confine a freshly started process; the job ends with the handle, and the process with the job."""
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.CreateJobObjectW.restype = ctypes.c_void_p
    job = kernel.CreateJobObjectW(None, None)
    limits = _ExtendedLimits()
    limits.basic.limit_flags = _ACTIVE_PROCESS | _PROCESS_MEMORY | _KILL_ON_CLOSE
    limits.basic.active_process_limit = 1
    limits.process_memory_limit = memory_limit_bytes
    size = ctypes.sizeof(limits)
    kernel.SetInformationJobObject(
        ctypes.c_void_p(job), _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.c_uint32(size)
    )
    handle = ctypes.c_void_p(int(process._handle))  # type: ignore[attr-defined]
    kernel.AssignProcessToJobObject(ctypes.c_void_p(job), handle)
    process._slideway_job = job  # type: ignore[attr-defined]
