"""One slide in a process of its own: read it and prepare what may leave; whatever it does, the node goes on.

Started as `python -m slideway.edge.child`; takes one line of JSON, gives one line of JSON, and ends when whoever
started it is gone. It decides nothing: what it made counts only once the node has committed it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slideway.core.crash import crash_here
from slideway.core.errors import BrokenBundleError, PolicyError, SlideAccessError, SlidewayError
from slideway.edge.settings import Places
from slideway.edge.shelves import Outgoing

THUMBNAIL = "thumbnail.jpg"
_THUMBNAIL_PX = (192, 128)
_NICE = 5  # the laboratory's own programs go first
MAX_REGIONS, MAX_REGION_PX = 64, 2048


def read_one(order: Mapping[str, Any]) -> dict[str, Any]:
    """Read a slide, or take the answer that an interrupted run left whole, and release its bundle.

    Returns:
        `facts` for the store, `findings`, and `leaving` (what was released) or `stays` (why nothing leaves).
    """
    folder, result = _find_or_read(order)
    _draw_thumbnail(folder)
    crash_here("edge.child-after-read")
    told = {
        "facts": _gather_facts(result),
        "findings": result.get("findings", []),
        "fingerprint": result["encoder"]["fingerprint"],
        "leaving": None,
        "stays": "",
    }
    try:
        told["leaving"] = _release(order, folder)
    except PolicyError as error:
        told["stays"] = f"{error.code}: {error}"
    crash_here("edge.child-after-release")
    return told


def cut_regions(order: Mapping[str, Any]) -> dict[str, Any]:
    """Read named rectangles at level 0 and prepare them to leave, as the policy says now.

    Returns:
        `regions`: sha256, n_bytes, rectangle and mpp of each.

    Raises:
        PolicyError: Regions may not leave.
    """
    import imagecodecs

    from slideway.bundles.policy import Level, load_policy
    from slideway.bundles.release import release_region
    from slideway.slides import open_slide
    from slideway.sync.identity import load_keys, read_endpoint

    policy, places = load_policy(Path(order["policy"])), Places(Path(order["folder"]))
    rule = policy.require(order["receiver"], Level.REGIONS)
    outgoing, told = Outgoing(places.outgoing), []
    with open_slide(Path(order["path"])) as opened:
        for box in _check_boxes(order["rectangles"], opened.slide.width_px, opened.slide.height_px):
            pixels = opened.read_region(0, *box)
            content = bytes(imagecodecs.webp_encode(pixels, level=None, lossless=True))
            content = release_region(
                content,
                slide_sha256=order["slide"],
                rectangle=box,
                site=order["site"],
                policy=policy,
                receiver=order["receiver"],
                signer=load_keys(places.keys).signing,
                receiver_key=read_endpoint(places.endpoint).receiver if rule.must_encrypt or rule.key else None,
            )
            sha256 = outgoing.put(content)
            row = {"sha256": sha256, "n_bytes": len(content), "rectangle": box, "mpp": opened.slide.resolution.mpp}
            told.append(row)
    crash_here("edge.child-after-regions")
    return {"regions": told}


def _find_or_read(order: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    from slideway.bundles import read_bundle
    from slideway.pipeline.result import read_result

    answers, sha256 = Places(Path(order["folder"])).answers, str(order["slide"])
    folder = answers / sha256
    result = read_result(folder)
    if result is not None and _is_same(result, order):
        with contextlib.suppress(BrokenBundleError, OSError):
            if read_bundle(folder / "bundle.swb").summary.case == order["case"]:
                return folder, result
    from slideway.pipeline.read import read_slide

    reading = read_slide(
        order["path"],
        out=answers,
        name=sha256,
        encoder=order["encoder"],
        engine=order["engine"] or None,
        threads=order["threads"] or None,
        profile=order["profile"],
        heads=order["heads"],
        site=order["site"],
        case=order["case"],
        estimate_mpp=order["estimate_mpp"],
    )
    if reading.slide_sha256 != sha256:
        raise SlideAccessError("it changed after it was taken in; it is taken in anew as it is now")
    _sync(reading.folder)
    return reading.folder, reading.result


def _is_same(result: Mapping[str, Any], order: Mapping[str, Any]) -> bool:
    is_same_profile = result.get("profile", {}).get("name") == order["profile"]
    return bool(
        result["slide"]["sha256"] == order["slide"]
        and result["encoder"]["fingerprint"] == order["fingerprint"]
        and is_same_profile
    )


def _release(order: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from slideway.bundles.policy import load_policy
    from slideway.bundles.release import release_bundle
    from slideway.sync.identity import load_keys, read_endpoint

    places = Places(Path(order["folder"]))
    if not places.endpoint.exists():
        raise PolicyError("this node is not enrolled with a cloud, so nothing leaves")
    policy = load_policy(Path(order["policy"]))
    endpoint, keys = read_endpoint(places.endpoint), load_keys(places.keys)
    content, report = release_bundle(
        folder / "bundle.swb", policy, order["receiver"], signer=keys.signing, receiver_key=endpoint.receiver
    )
    ends = [sum(report.tier_bytes[: tier + 1]) for tier in range(len(report.tier_bytes))]
    return {
        "sha256": Outgoing(places.outgoing).put(content),
        "ends": ends,
        "level": report.level,
        "reason": report.reason,
        "source": report.source_id,
    }


def _gather_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    slide, novelty = result["slide"], result.get("novelty")
    return {
        "verdict": result["quality"]["verdict"],
        "reasons": [reason["code"] for reason in result["quality"]["reasons"]],
        "tissue_mm2": result["tissue"]["area_mm2"],
        "tiles": result["grid"]["tiles"],
        "mpp": slide["mpp"],
        "width_px": slide["width_px"],
        "height_px": slide["height_px"],
        "vendor": slide["vendor"],
        "encoder": result["encoder"]["id"],
        "fingerprint": result["encoder"]["fingerprint"],
        "groups": result["groups"]["count"],
        "novel_share": None if novelty is None else novelty["novel_share"],
        "seconds": result["timing"]["total_s"],
    }


def _draw_thumbnail(folder: Path) -> None:
    """A small picture of the tissue for the worklist: the bundle's own, on which no label and no writing is."""
    from PIL import Image

    from slideway.bundles import read_bundle
    from slideway.core.files import write_whole

    target, picture = folder / THUMBNAIL, read_bundle(folder / "bundle.swb").thumbnail
    if target.exists() or picture is None:
        return
    with Image.open(io.BytesIO(picture)) as large:
        small = large.convert("RGB")
    small.thumbnail(_THUMBNAIL_PX)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    write_whole(target, content.getvalue())


def _check_boxes(boxes: Any, width_px: int, height_px: int) -> list[list[int]]:
    """Rectangles inside the slide, not more and not larger than a question needs."""
    kept = []
    for x, y, width, height in list(boxes)[:MAX_REGIONS]:
        left, top = max(0, x), max(0, y)
        right, bottom = min(width_px, x + min(width, MAX_REGION_PX)), min(height_px, y + min(height, MAX_REGION_PX))
        if right > left and bottom > top:
            kept.append([left, top, right - left, bottom - top])
    return kept


def _sync(folder: Path) -> None:
    """Wait until an answer is on disk: the store will say that it is there."""
    from slideway.core.files import sync_file, sync_folder

    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)
    sync_folder(folder.parent)


def _end_with_parent() -> None:
    """End when the pipe from the node closes: a killed node leaves no readers behind."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(75)


def main() -> None:
    """Do what the first line asks."""
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not disturb the answer
    try:
        told: dict[str, Any] = {"done": cut_regions(order) if order["step"] == "regions" else read_one(order)}
    except SlidewayError as error:
        told = {"error": error.code, "message": str(error)}
    except MemoryError:
        told = {"error": "out-of-memory", "message": "not enough memory for this slide"}
    except OSError as error:
        told = {"error": "disk-full" if error.errno in (28, 122) else "read-failed", "message": error.strerror or ""}
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()
    os._exit(0)  # nothing is left to do; a thread of a library must not keep it


if __name__ == "__main__":
    main()
