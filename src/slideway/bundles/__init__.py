"""Embedding bags as files, and their exports to other programs' formats."""

from slideway.bundles.bag import BagWriter, read_bag
from slideway.bundles.exports import EXPORTS, export_bag

__all__ = ["EXPORTS", "BagWriter", "export_bag", "read_bag"]
