"""What every extension must pass, and small slides for everyone's tests."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slideway.testing.reader_contract import ReaderCase, ReaderContract

__all__ = ["ReaderCase", "ReaderContract"]


def __getattr__(name: str) -> Any:
    # The contract needs pytest, the slides do not: benchmarks write slides on machines without pytest.
    if name in __all__:
        from slideway.testing import reader_contract  # noqa: PLC0415

        return getattr(reader_contract, name)
    raise AttributeError(f"module 'slideway.testing' has no attribute {name!r}")
