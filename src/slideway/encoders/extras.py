"""Libraries that only building and optimising an encoder needs: asked for by name, and missed in words."""

from __future__ import annotations

import importlib.util

from slideway.core.errors import WrongUseError


def require_torch() -> None:
    """See that torch is installed.

    Raises:
        WrongUseError: It is not.
    """
    require_library("torch", "building an encoder from a checkpoint")


def require_library(name: str, purpose: str) -> None:
    """See that a library of the `train` extra is installed.

    Raises:
        WrongUseError: It is not; the message says how to get it.
    """
    if importlib.util.find_spec(name) is None:
        raise WrongUseError(
            f"{purpose} needs {name}, which is not installed here; pip install 'slideway[train]' (an encoder that was "
            "built on another machine needs none of it: export it there and import it here)"
        )
