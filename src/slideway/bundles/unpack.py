"""Take a bundle apart into files that other programs read: bag, picture, summary and findings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from slideway.bundles.bag import BagWriter
from slideway.bundles.read import CaseBundle

BAG, THUMBNAIL, SUMMARY, OPINION = "bag.safetensors", "thumbnail.webp", "summary.json", "opinion.json"


def write_files(case: CaseBundle, folder: Path) -> tuple[str, ...]:
    """Write what came of a bundle into a folder; returns the files' names.

    Raises:
        BrokenBundleError: A part does not hold what it says.
    """
    names = [SUMMARY]
    _write_json(folder / SUMMARY, {**asdict(case.summary), "bundle": case.head.id, "missing": case.missing})
    if (opinion := case.opinion) is not None:
        _write_json(folder / OPINION, opinion)
        names.append(OPINION)
    if case.thumbnail is not None:
        (folder / THUMBNAIL).write_bytes(case.thumbnail)
        names.append(THUMBNAIL)
    if (bag := case.bag()) is not None:
        with BagWriter(folder / BAG, bag.grid, bag.width) as writer:
            writer.write(np.arange(len(bag)), np.asarray(bag.vectors, np.float32), np.asarray(bag.focus))
            writer.finish(
                encoder_id=bag.encoder_id,
                fingerprint=bag.fingerprint,
                slide_sha256=bag.slide_sha256,
                sampling=bag.sampling,
            )
        names.append(BAG)
    return tuple(names)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
