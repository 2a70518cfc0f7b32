"""Open a published checkpoint without ever running what may hide in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from slideway.core.errors import UnreadableCheckpointError
from slideway.encoders.extras import require_library

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
TIMEOUT_S = 1800.0  # a checkpoint of 5 GB on a slow disk takes minutes; a converter that hangs is ended
# torch alone takes 3 GB of address space; a mapped file is counted in full, and the older form is copied once.
_MEMORY_BASE_BYTES, _MEMORY_PER_FILE_BYTE = 6_000_000_000, 3
# Half floats double, and a tensor that two names share is written twice; a bomb is far above.
_GROWTH, _GROWTH_BASE_BYTES = 4, 64_000_000
_MAX_ANSWER_BYTES = 100_000
_MAX_CHECKPOINT_BYTES = 40_000_000_000
# What the converter may know of its surroundings: where programs and libraries are, nothing else.
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "WINDIR", "TEMP", "TMP", "VIRTUAL_ENV")


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint that can be read without danger.

    Attributes:
        path: A safetensors file: the one given, or the converted one.
        limits: Limits that were in force while it was converted, in words; empty for a safetensors file.
    """

    path: Path
    limits: tuple[str, ...] = ()


def open_checkpoint(checkpoint: Path, scratch: Path) -> OpenedCheckpoint:
    """Make sure of a safetensors file: take it as it is, or convert a pickled one in a sandboxed process.

    Args:
        checkpoint: `.safetensors`, or a pickled `.pth`, `.pt`, `.bin` or `.ckpt`.
        scratch: An existing folder for the converted file.

    Raises:
        UnreadableCheckpointError: It holds something else than tensors, or is damaged. Nothing of it was run.
        WrongUseError: It is pickled and torch is not installed.
    """
    if not checkpoint.is_file():
        raise UnreadableCheckpointError(f"{checkpoint.name}: no such file; give the checkpoint's file, not its folder")
    if checkpoint.suffix == ".safetensors":
        _require_safetensors(checkpoint, checkpoint.name)
        return OpenedCheckpoint(checkpoint)
    if not checkpoint.name.endswith(PICKLED):
        raise UnreadableCheckpointError(
            f"{checkpoint.name}: a checkpoint is a .safetensors file or a pickled one ({', '.join(PICKLED)})"
        )
    require_library("torch", f"reading {checkpoint.name}")
    if checkpoint.stat().st_size > _MAX_CHECKPOINT_BYTES:
        raise UnreadableCheckpointError(f"{checkpoint.name}: over 40 GB, more than any encoder has; not opened")
    converted = scratch / "checkpoint.safetensors"
    limits = _convert(checkpoint, converted)
    _require_safetensors(converted, checkpoint.name)
    return OpenedCheckpoint(converted, limits)


def _require_safetensors(path: Path, name: str) -> None:
    try:
        with safe_open(path, "numpy") as file:
            is_empty = not file.keys()
    except (SafetensorError, OSError) as error:
        raise UnreadableCheckpointError(f"{name}: not a whole safetensors file ({error}); download it again") from error
    if is_empty:
        raise UnreadableCheckpointError(f"{name}: no tensor in it; give the file that the model's authors published")


def _convert(checkpoint: Path, target: Path) -> tuple[str, ...]:
    process = _start_converter(checkpoint)
    watch = threading.Timer(TIMEOUT_S, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        answer = _read_answer(process.stdout, checkpoint)
        expected = answer["bytes"]
        _copy(process.stdout, target, expected)
        if process.wait() != 0 or target.stat().st_size != expected:
            raise _stopped(checkpoint)
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return tuple(answer["limits"])


def _start_converter(checkpoint: Path) -> subprocess.Popen[bytes]:
    limit = _MEMORY_BASE_BYTES + _MEMORY_PER_FILE_BYTE * checkpoint.stat().st_size
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "slideway.encoders.convert", str(checkpoint.absolute()), str(limit)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    if sys.platform == "win32":
        from slideway.slides import job_object

        job_object.confine(process, limit)
    return process


def _read_answer(output: IO[bytes], checkpoint: Path) -> dict[str, Any]:
    """The converter's first line, checked: what it read may have taken it over."""
    try:
        answer = json.loads(output.readline(_MAX_ANSWER_BYTES))
    except ValueError as error:
        raise _stopped(checkpoint) from error
    if not isinstance(answer, dict):
        raise _stopped(checkpoint)
    if "refused" in answer:
        raise _refusal(checkpoint, str(answer["refused"])[:300], is_program=answer.get("kind") == "program")
    size, limits = answer.get("bytes"), answer.get("limits")
    if type(size) is not int or not isinstance(limits, list) or not all(isinstance(limit, str) for limit in limits):
        raise _stopped(checkpoint)
    if not 0 < size <= _GROWTH * checkpoint.stat().st_size + _GROWTH_BASE_BYTES:
        raise UnreadableCheckpointError(
            f"{checkpoint.name}: {checkpoint.stat().st_size / 1e6:.0f} MB would become {size / 1e6:.0f} MB of tensors; "
            "the file is damaged or hostile, nothing of it was run"
        )
    return answer


def _refusal(checkpoint: Path, words: str, *, is_program: bool) -> UnreadableCheckpointError:
    if is_program:
        return UnreadableCheckpointError(
            f"{checkpoint.name}: refused: beside tensors it asks for code when loaded ({words}); nothing of it was "
            "run. Ask its publisher for a .safetensors file, or save the tensors alone where you trust it"
        )
    return UnreadableCheckpointError(
        f"{checkpoint.name}: damaged, or no checkpoint of torch ({words}); download it again"
    )


def _stopped(checkpoint: Path) -> UnreadableCheckpointError:
    return UnreadableCheckpointError(
        f"{checkpoint.name}: the sandboxed converter ended by itself; the file is damaged, hostile or needs more "
        "memory than this computer gives, nothing else was harmed: download it again"
    )


def _copy(stream: IO[bytes], target: Path, size: int) -> None:
    """Write so many bytes of a stream, whatever the other side sends."""
    with target.open("wb") as file:
        while size > 0 and (block := stream.read(min(size, 1 << 20))):
            file.write(block)
            size -= len(block)
