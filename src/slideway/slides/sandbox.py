"""Take from the reader process what a hostile slide could misuse: memory, files, network, other programs.

Linux: rlimits, Landlock and a seccomp filter. macOS: the rlimits it honours. Windows: a job object, set from outside.
What a system lacks is said in the answer (`slideway doctor` shows it), never silently skipped.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from pathlib import Path

from slideway.slides import landlock

MEMORY_LIMIT_BYTES = 1_500_000_000  # address space: libraries take ~300 MB of it, pixels stay under 300 MB
CPU_LIMIT_S = 4 * 3600  # a runaway parser ends by itself even when nobody watches


def enter_sandbox(memory_limit_bytes: int = MEMORY_LIMIT_BYTES, *, slide: Path | None = None) -> list[str]:
    """Limit this process for good and say in words which limits are in force.

    Args:
        memory_limit_bytes: Address space it may use.
        slide: The only file or folder of the user's that it may read; None leaves files readable.
    """
    in_force = []
    if sys.platform != "win32":
        in_force += _limit_resources(memory_limit_bytes)
    if sys.platform == "linux":
        if slide is not None and landlock.confine_to(slide):
            in_force.append("no other file read")
        in_force += _filter_system_calls()
    return in_force


def _limit_resources(memory_limit_bytes: int) -> list[str]:
    import resource

    limits = {
        "memory": (resource.RLIMIT_AS, memory_limit_bytes),
        "processor time": (resource.RLIMIT_CPU, CPU_LIMIT_S),
        "no file grows": (resource.RLIMIT_FSIZE, 0),
        "no core dump": (resource.RLIMIT_CORE, 0),
        "open files": (resource.RLIMIT_NOFILE, 512),  # a DICOM slide may hold one file a frame group
    }
    in_force = []
    for words, (limit, value) in limits.items():
        _, hard = resource.getrlimit(limit)
        capped = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (capped, capped))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            continue
        in_force.append(words)
    return in_force


# System call numbers (x86_64, aarch64); None where the architecture has no such call.
# Source: Linux arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "socketpair": (53, 199),
    "bind": (49, 200),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "setrlimit": (160, 164),  # root may raise its own limits again
    "mknod": (133, None),
    "mknodat": (259, 33),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "fallocate": (285, 47),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "creat": (85, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "open_by_handle_at": (304, 265),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mq_open": (240, 180),
    "shmget": (29, 194),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),  # its requests would bypass this very filter
    "openat2": (437, 437),  # its flags lie behind a pointer that a filter cannot read
}
_OPEN = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # number, index of the flags argument
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_CLONE_THREAD = 0x10000
_WRITE_FLAGS = 0o3 | 0o100 | 0o1000 | 0o2000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Classic BPF, as seccomp(2) takes it.
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERRNO_EPERM, _ERRNO_ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def _filter_system_calls() -> list[str]:
    if platform.machine() not in _ARCHITECTURES:
        return []
    program = build_filter(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)

    class SockFprog(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    fprog = SockFprog(len(program) // 8, program)
    set_no_new_privs, set_seccomp, mode_filter = 38, 22, 2
    if libc.prctl(set_no_new_privs, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, ctypes.byref(fprog), 0, 0):
        return []
    return ["no network", "no program started", "no file opened for writing"]


def build_filter(machine: str) -> bytes:
    """Assemble the seccomp program: deny by number, deny opening for writing, allow the rest."""
    column, audit_arch = _ARCHITECTURES[machine]
    code = [_op(_LOAD, 0, 0, 4), _op(_JUMP_EQUAL, 1, 0, audit_arch), _op(_RETURN, 0, 0, _KILL), _op(_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # the x32 twins of the calls carry this bit
        code += [_op(_JUMP_AT_LEAST, 0, 1, 0x40000000), _op(_RETURN, 0, 0, _ERRNO_EPERM)]
    for numbers in _DENIED.values():
        if (number := numbers[column]) is not None:
            code += [_op(_JUMP_EQUAL, 0, 1, number), _op(_RETURN, 0, 0, _ERRNO_EPERM)]
    code += _allow_threads_only(column)
    # prlimit may ask for a limit and not set one: the pointer to new limits, both halves, must be null
    code += [_op(_JUMP_EQUAL, 0, 6, _PRLIMIT[column]), _op(_LOAD, 0, 0, 16 + 8 * 2), _op(_JUMP_EQUAL, 0, 2, 0)]
    code += [_op(_LOAD, 0, 0, 20 + 8 * 2), _op(_JUMP_EQUAL, 1, 0, 0), _op(_RETURN, 0, 0, _ERRNO_EPERM)]
    code += [_op(_RETURN, 0, 0, _ALLOW)]
    for numbers, flags_argument in _OPEN.values():
        if (number := numbers[column]) is not None:
            code += [
                _op(_JUMP_EQUAL, 0, 4, number),
                _op(_LOAD, 0, 0, 16 + 8 * flags_argument),
                _op(_JUMP_SET, 0, 1, _WRITE_FLAGS),
                _op(_RETURN, 0, 0, _ERRNO_EPERM),
                _op(_RETURN, 0, 0, _ALLOW),
            ]
    code.append(_op(_RETURN, 0, 0, _ALLOW))
    return b"".join(code)


def _allow_threads_only(column: int) -> list[bytes]:
    """A new thread is no new process; clone3 hides its flags behind a pointer, so libc is sent back to clone."""
    return [
        _op(_JUMP_EQUAL, 0, 1, _CLONE3[column]),
        _op(_RETURN, 0, 0, _ERRNO_ENOSYS),
        _op(_JUMP_EQUAL, 0, 4, _CLONE[column]),
        _op(_LOAD, 0, 0, 16),
        _op(_JUMP_SET, 1, 0, _CLONE_THREAD),
        _op(_RETURN, 0, 0, _ERRNO_EPERM),
        _op(_RETURN, 0, 0, _ALLOW),
    ]


def _op(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
