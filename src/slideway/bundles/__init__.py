"""Embedding bags as files, their exports to other programs' formats, and the case bundle that travels."""

from slideway.bundles.bag import BagWriter, read_bag
from slideway.bundles.build import BuiltBundle, BundleContent, build_bundle
from slideway.bundles.exports import EXPORTS, export_bag
from slideway.bundles.read import CaseBundle, read_bundle

__all__ = [
    "EXPORTS",
    "BagWriter",
    "BuiltBundle",
    "BundleContent",
    "CaseBundle",
    "build_bundle",
    "export_bag",
    "read_bag",
    "read_bundle",
]
