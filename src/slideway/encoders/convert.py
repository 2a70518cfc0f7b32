"""The sandboxed converter: opens one pickled checkpoint and gives its tensors as safetensors on standard output.

Started as `python -m slideway.encoders.convert CHECKPOINT BYTES` by `open_checkpoint`. A pickle is a program; torch's
reader for weights runs none of it but rebuilds tensors only, and this process could not harm anything if it did.
First a line of JSON (limits in force and number of bytes to come, or why it refused), then the file itself.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from slideway.slides.sandbox import enter_sandbox

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 8  # of the tensors' first byte, as the safetensors format asks of its header
_CHUNK_NUMBERS = 1 << 22
_MAX_DEPTH = 8
# What a reader of damaged or hostile bytes ends with; a list, since none of it shares a root of its own.
_DAMAGED = (
    LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError, OSError, EOFError, MemoryError,
    AssertionError, ImportError, zipfile.BadZipFile,
)  # fmt: skip


def main() -> None:
    """Convert the checkpoint named on the command line."""
    path, memory_limit_bytes = Path(sys.argv[1]), int(sys.argv[2])
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=1 << 20)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not break the file
    import torch

    torch.set_num_threads(1)
    # What torch would import on first use is imported now: the sandbox shuts the door behind it.
    torch.zeros(1, dtype=torch.bfloat16).float().numpy()
    limits = enter_sandbox(memory_limit_bytes, slide=path)
    try:
        tensors = dict(_flatten(_load(path), "", 0))
        header, size = _describe(tensors)
    except pickle.UnpicklingError as error:
        _say(output, refused=_explain_refusal(str(error)), kind="program")
        return
    except _DAMAGED as error:
        _say(output, refused=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
        return
    _say(output, limits=limits, bytes=len(header) + size)
    output.write(header)
    for tensor in tensors.values():
        _write(output, tensor)
    output.flush()


def _load(path: Path) -> Any:
    import torch

    if not zipfile.is_zipfile(path) and tarfile.is_tarfile(path):
        raise ValueError("the tar form of the first versions of torch is not read")
    # Mapped, a file in the zip form is read from disk as it is written out; the older form is read as a whole.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _flatten(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Every dense tensor of nested dictionaries, by its names joined with dots; everything else is left behind."""
    import torch

    if not isinstance(content, dict) or depth > _MAX_DEPTH:
        if not prefix:
            raise ValueError(f"a {type(content).__name__} instead of a dictionary of tensors")
        return
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided and not value.is_quantized and not value.is_complex():
                yield name, value.detach()
        elif isinstance(value, dict):
            yield from _flatten(value, f"{name}.", depth + 1)


def _describe(tensors: dict[str, torch.Tensor]) -> tuple[bytes, int]:
    """Header of a safetensors file of these tensors in float32, and how many bytes follow it."""
    if not tensors:
        raise ValueError("no tensor in it")
    entries, at = {}, 0
    for name, tensor in tensors.items():
        end = at + 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header, at


def _write(output: BinaryIO, tensor: torch.Tensor) -> None:
    numbers = tensor.reshape(-1)
    for start in range(0, numbers.numel(), _CHUNK_NUMBERS):
        output.write(numbers[start : start + _CHUNK_NUMBERS].float().numpy().astype("<f4", copy=False).tobytes())


def _say(output: BinaryIO, **words: Any) -> None:
    output.write(json.dumps(words).encode() + b"\n")
    output.flush()


def _explain_refusal(message: str) -> str:
    """Name what the pickle wanted to call, out of torch's long explanation."""
    found = re.search(r"GLOBAL\W+([\w.]+)|(Unsupported \w+ [\w.]+)", message)
    return (found[1] or found[2]) if found else " ".join(message.split())[:200]


if __name__ == "__main__":
    main()
