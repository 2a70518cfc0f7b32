"""What this computer offers to one reading: cores it may use, memory, disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import psutil


def count_cores() -> int:
    """Cores this process may really use: its affinity, capped by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def cpu_seconds_of(process_id: int) -> float:
    """CPU seconds another process has used so far; 0 when it is gone."""
    try:
        times = psutil.Process(process_id).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def process_age_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    try:  # psutil knows the boot time to a second only
        started_ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return time.time() - psutil.Process().create_time()


def total_memory_bytes() -> int:
    """Installed memory."""
    return int(psutil.virtual_memory().total)


def free_disk_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
