"""The tables of docs/privacy.md, from the evidence of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

START, END = "<!-- figures of bench/privacy/measure.py: start -->", "<!-- figures of bench/privacy/measure.py: end -->"
ATTACKS = {
    "none": "–",
    "floor": "floor",
    "lossless": "trained on lossless vectors",
    "retrained": "trained on what this codec gives",
    "linear": "ridge regression, lossless",
}


def show(estimate: dict[str, float], style: str = ".2f") -> str:
    return f"{estimate['value']:{style}} ({estimate['low']:{style}}–{estimate['high']:{style}})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def write_tables(evidence: dict[str, Any], page: Path | None) -> None:
    """Print the tables, and put them between the marks of a page."""
    text = "\n".join(["", *describe_run(evidence), "", *list_pictures(evidence), "", *list_linkage(evidence), ""])
    print(text)
    if page is not None:
        before, _, rest = page.read_text(encoding="utf-8").partition(START)
        page.write_text(before + START + "\n" + text + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def describe_run(evidence: dict[str, Any]) -> list[str]:
    versions, steps = evidence["versions"], evidence["steps"]
    return [
        f"{evidence['date']}, {evidence['machine']}, Python {versions['python']}, torch {versions['torch']}: "
        f"{evidence['tiles']:,} tiles of {evidence['slides']} slides and {evidence['cases']} cases, "
        f"{evidence['folds']} folds by case; a decoder of {evidence['parameters'] / 1e6:.1f} M parameters, "
        f"{steps['lossless']:,} + {steps['further']} steps; encoder `{evidence['encoder']['id']}`. In brackets 95 % "
        "intervals over cases."
    ]


def list_pictures(evidence: dict[str, Any]) -> list[str]:
    rows = []
    for one in evidence["pictures"]:
        is_exact = one["attack"] == "none"
        rows.append(
            [
                one["received"],
                ATTACKS[one["attack"]],
                "1" if is_exact else show(one["ssim"], ".3f"),
                "0" if is_exact else f"{one['mse']['value']:.4f}",
                "–" if is_exact else show(one["psnr"], ".1f"),
                show(one["own_tile_pixels"], ".0%"),
                show(one["own_tile_colours"], ".0%"),
                show(one["same_slide_pixels"], ".0%"),
                show(one["same_slide_colours"], ".0%"),
            ]
        )
    head = ["received", "decoder", "SSIM", "MSE", "PSNR, dB", "own tile, by pixels", "by colours"]
    return table([*head, "another of its slide, by pixels", "by colours"], rows)


def list_linkage(evidence: dict[str, Any]) -> list[str]:
    keys = ("space_mean", "space_tiles", "random_mean", "random_tiles", "same_slide", "own_vector")
    rows = []
    for one in evidence["linkage"]:
        ranks = [", ".join(str(rank) for rank in one[f"sibling_ranks_{score}"]) for score in ("mean", "tiles")]
        rows.append([one["received"], *(show(one[key], ".0%") for key in keys), *ranks])
    head = [
        "received",
        "other half (cut in space), by mean vector",
        "by tiles",
        "other half (drawn at random), by mean vector",
        "by tiles",
        "nearest other tile is of its slide",
        "own vector found again",
        "rank of the case's other slide, by mean vector",
        "by tiles",
    ]
    return table(head, rows)
