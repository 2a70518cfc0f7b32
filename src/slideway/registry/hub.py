"""Fetch a model's files from a model hub, or from its cache when the line is down; never any of its code.

The hub's own client does it, so its settings hold: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HOME (the cache),
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import fnmatch
import importlib
from pathlib import Path
from types import ModuleType

from slideway.core.errors import ModelUnavailableError, WrongUseError
from slideway.registry.card import CARD_FILE, read_card
from slideway.registry.staging import FULL, explain_write_error

# Always wanted; small. Everything else is fetched by name, or by the first of the tiers that the repository has.
_ALWAYS = (CARD_FILE, "config.json", "LICENSE*", "LICENCE*", "license*", "golden*.safetensors")
# Formats that cannot hold code come first. Pickles come last; slideway.encoders reads them without running them.
_TIERS = (
    ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    ("*.safetensors", "*.safetensors.index.json"),
    ("model.onnx", "model.onnx.data", "model.onnx_data"),
    ("*.onnx", "*.onnx.data", "*.onnx_data"),
    ("pytorch_model.bin",),
    ("*.pth", "*.pt", "*.bin"),
)
_NOT_WEIGHTS = ("golden*", "*.index.json", "*training_args*", "*optimizer*", "*scheduler*", "*.data", "*.onnx_data")


def fetch_model(repo_id: str, *, revision: str | None = None) -> Path:
    """Fetch what belongs to a model and return the folder it lies in (the client's cache).

    Args:
        repo_id: `OWNER/NAME`.
        revision: Branch, tag or commit; None takes the main branch.

    Raises:
        ModelUnavailableError: Gated, not found, unreachable and not in the cache, without weights, or the hub's client
            is not installed; the message says which.
        WrongUseError: That is no name of a repository.
        DiskFullError: The cache's disk is full.
    """
    folder = _snapshot(repo_id, revision, _ALWAYS)
    if (folder / CARD_FILE).exists():
        card = read_card(folder)
        return _snapshot(repo_id, revision, (*_ALWAYS, *card.file_names))
    for tier in _TIERS:
        folder = _snapshot(repo_id, revision, (*_ALWAYS, *tier))
        if list_weights(folder, tier):
            return folder
    raise ModelUnavailableError(
        f"{repo_id}: the hub has no weights there that Slideway reads (safetensors, ONNX, or a PyTorch file); "
        "check the name, or download the file yourself and give its path"
    )


def find_checkpoint(folder: Path) -> Path:
    """The file of weights in a fetched folder, of the safest form there is.

    Raises:
        ModelUnavailableError: There is none, or several and none of them is called `model`.
    """
    for tier in _TIERS:
        found = list_weights(folder, tier)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:4])
            raise ModelUnavailableError(
                f"{len(found)} files of weights are there ({names}) and it is not plain which is meant; fetch "
                "the right one yourself and give its path with --slot"
            )
    raise ModelUnavailableError("no file of weights was fetched; download it yourself and give its path with --slot")


def list_weights(folder: Path, tier: tuple[str, ...]) -> list[Path]:
    """Files of weights that a tier's patterns name in a folder, wherever in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return [
        path
        for path, name in names.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in tier)
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in _NOT_WEIGHTS)
    ]


def _snapshot(repo_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    hub, errors = _import_client(), importlib.import_module("huggingface_hub.errors")
    where = f"{repo_id} at {revision}" if revision else repo_id
    # Whatever HTTP library the client uses: its errors, and the client's own, descend from this class or from OSError.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        return Path(
            hub.snapshot_download(
                repo_id, revision=revision, allow_patterns=list(patterns), library_name="slideway", etag_timeout=20
            )
        )
    except errors.HFValidationError as error:
        raise WrongUseError(
            f"{repo_id!r} is no name of a repository; write OWNER/NAME, as in hub:owner/name"
        ) from error
    except errors.GatedRepoError as error:
        raise ModelUnavailableError(
            f"{where}: gated. Open its page at the hub, accept its licence, and give the hub's client your token "
            "(HF_TOKEN=..., or `hf auth login`); then run this again"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelUnavailableError(
            f"{where}: not found at the hub, or private; check the name and --revision, and for a private one HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if (cached := _find_cached(hub, repo_id, revision)) is not None:
            return cached
        raise _unreachable(where, error) from error
    except (http_error, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise explain_write_error(error, Path(hub.constants.HF_HUB_CACHE)) from error
        raise _unreachable(where, error) from error


def _import_client() -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ModelUnavailableError(
            "the hub's client is not installed; run: pip install 'slideway[train]'. Or download the model elsewhere "
            "and give its folder or file, or import a package: slideway models import FILE.swm"
        ) from error


def _find_cached(hub: ModuleType, repo_id: str, revision: str | None) -> Path | None:
    """Folder of the cache in which another program left weights of this model; None when there are none."""
    for tier in _TIERS:
        for name in (CARD_FILE, "config.json", *tier):
            cached = hub.try_to_load_from_cache(repo_id, name, revision=revision)
            if isinstance(cached, str) and any(list_weights(Path(cached).parent, names) for names in _TIERS):
                return Path(cached).parent
    return None


def _unreachable(where: str, error: Exception) -> ModelUnavailableError:
    cause = str(error).strip().splitlines() or [type(error).__name__]
    return ModelUnavailableError(
        f"{where}: the hub cannot be reached and the model is not in the cache ({cause[0][:200]}). Check the line, set "
        "HF_ENDPOINT to a mirror, or fetch it on another computer: slideway models export there, import here"
    )
