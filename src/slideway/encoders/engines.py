"""The inference engines an encoder can run on, and which one this machine should use."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import platformdirs
from numpy.typing import NDArray

from slideway.core.errors import UntrustedEncoderError, WrongUseError


class Engine(Protocol):
    """An encoder's weights loaded for inference; `run` may be called from several threads at once."""

    @property
    def words(self) -> str:
        """Name and version, for result.json."""
        ...

    def run(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn (b, tile_px, tile_px, 3) uint8 tiles into (b, width) vectors on the calling thread's core."""
        ...


@contextmanager
def engine_fence(words: str) -> Iterator[None]:
    """Turn whatever an engine raises into a refusal of the encoder: engines' errors share no base class."""
    try:
        yield
    except Exception as error:
        raise UntrustedEncoderError(f"{words} ({error})") from error


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU. One session for all threads: with one thread of its own, it computes on the caller's.

    Weights in one file are handed over as bytes, and a folder that does not exist as the place of further ones:
    whatever `verify_files` may have overlooked, the engine finds no file to open.
    """

    def __init__(self, weights: Path, threads: int, has_data_file: bool = False) -> None:
        del threads  # parallelism comes from the callers
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # on Windows; elsewhere slideway/__init__.py has said so
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not has_data_file:  # otherwise it would look into the working directory
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(weights / "no-further-files")
            )
        source = str(weights) if has_data_file else weights.read_bytes()
        with engine_fence(f"{weights.name}: onnxruntime cannot load these weights"):
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._version = onnxruntime.__version__

    @property
    def words(self) -> str:
        """Name and version, for result.json."""
        return f"onnxruntime {self._version} CPU fp32"

    def run(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        vectors: NDArray[np.float32] = self._session.run(["vectors"], {"tiles": tiles})[0]
        return vectors


class OpenVinoEngine:
    """OpenVINO on the CPU: one stream a thread, each with one core."""

    def __init__(self, weights: Path, threads: int, has_data_file: bool = False) -> None:
        del has_data_file  # it takes paths only; that the file names no others was seen by `verify_files`
        import threading

        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # its default on newer CPUs is bf16: other features
        }
        with engine_fence(f"{weights.name}: openvino cannot load these weights"):
            self._compiled = openvino.Core().compile_model(weights, "CPU", settings)
        self._version = openvino.__version__.split("-")[0]
        self._per_thread = threading.local()

    @property
    def words(self) -> str:
        """Name and version, for result.json."""
        return f"openvino {self._version} CPU fp32"

    def run(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        request = getattr(self._per_thread, "request", None)
        if request is None:
            request = self._per_thread.request = self._compiled.create_infer_request()
        request.infer({"tiles": tiles})
        vectors: NDArray[np.float32] = request.get_output_tensor().data.copy()
        return vectors


# Weights, threads, and whether the card names a second file of weights (models over 2 GB must have one).
ENGINES: dict[str, Callable[[Path, int, bool], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
}


def available_engines() -> tuple[str, ...]:
    """Names of the engines installed here, the default first."""
    return tuple(name for name in ENGINES if importlib.util.find_spec(name) is not None)


def choose_engine(fingerprint: str, wanted: str | None = None) -> str:
    """Choose the engine: the one asked for, else the one `slideway doctor` found fastest here, else ONNX Runtime.

    Raises:
        WrongUseError: The engine asked for is not known or not installed.
    """
    if wanted is not None:
        if wanted not in available_engines():
            how = f"pip install 'slideway[{wanted}]'" if wanted in ENGINES else f"known are {', '.join(ENGINES)}"
            raise WrongUseError(f"engine {wanted!r} is not installed; {how}")
        return wanted
    remembered = read_memory().get(fingerprint)
    return remembered if remembered in available_engines() else "onnxruntime"


def read_memory() -> dict[str, str]:
    """Fastest engine by encoder fingerprint, as measured on this very machine; empty when never measured."""
    try:
        memory = json.loads(memory_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fits = isinstance(memory, dict) and memory.get("machine") == describe_processor()
    engines = memory.get("engines") if fits else None
    return {str(k): str(v) for k, v in engines.items()} if isinstance(engines, dict) else {}


def memory_path() -> Path:
    """Where the measured engine choice is kept; SLIDEWAY_CACHE moves it."""
    root = os.environ.get("SLIDEWAY_CACHE") or platformdirs.user_cache_dir("slideway", appauthor=False)
    return Path(root) / "engines.json"


def describe_processor() -> str:
    """The processor in words; a choice measured on another one is not used."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
