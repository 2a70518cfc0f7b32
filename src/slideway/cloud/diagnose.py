"""What the cloud says of a bundle: the heads in force, heads that were named, and what needs no labels.

A plain function of bytes, so that it can run in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles.read import CaseBundle, read_bundle
from slideway.core.bag import EmbeddingBag
from slideway.core.errors import UnknownHeadError, UntrustedHeadError
from slideway.core.findings import Novelty
from slideway.core.opinion import Answer, Opinion
from slideway.core.tissue import QualityGrade, Reason, Verdict
from slideway.heads.diagnose import SlideFacts
from slideway.heads.discordance import choose_tiles_to_ask
from slideway.heads.groups import group_tiles
from slideway.heads.head import Head, load_head
from slideway.heads.novelty import find_novelty
from slideway.pipeline.opinions import HeadChoice, describe_opinions, give_opinions
from slideway.registry.head_records import HeadCard
from slideway.registry.heads import find_head, list_heads

_UNSURE = (Answer.SET, Answer.REFER)


@dataclass(frozen=True)
class Request:
    """What a worker is asked.

    Attributes:
        bundle: Hash of the bundle's file.
        tier: Highest tier that came.
        heads: Ids of heads that also speak, in force or not.
        explain: Also say what speaks for and against.
        ask_count: Tiles to ask for when a finding is not sure; 0 for none.
        ask_for_research: Also when only a finding that is not in force is not sure.
    """

    bundle: str
    tier: int
    heads: tuple[str, ...] = ()
    explain: bool = True
    ask_count: int = 0
    ask_for_research: bool = False


def diagnose_bundle(content: bytes, private_key: bytes, request: Request) -> dict[str, Any]:
    """The opinion on a bundle, as JSON.

    Args:
        content: The bundle, or as much as came.
        private_key: (32 bytes) the cloud's X25519 key.
        request: What is asked.

    Returns:
        Body of the message `opinion`, and under `ask` rectangles [x, y, width, height] in level-0 pixels.

    Raises:
        BrokenBundleError: Its parts contradict each other.
    """
    case = read_bundle(content, key=X25519PrivateKey.from_private_bytes(private_key))
    bag = case.bag()
    told: dict[str, Any] = {
        "slide": case.summary.slide_sha256,
        "bundle": request.bundle,
        "tier": request.tier,
        "provisional": not case.is_whole,
        "quality": case.summary.verdict,
        "encoder": {"id": case.summary.encoder_id, "fingerprint": case.summary.fingerprint},
        "tiles": 0 if bag is None else len(bag),
        "findings": [],
        "heads": [],
        "silent": [],
        "groups": None,
        "novelty": None,
        "ask": [],
    }
    if bag is None or not len(bag):
        told["silent"] = ["No vectors came: the sender's policy keeps them, or the slide has no tissue."]
        return told
    return told | _read(case, bag, request)


def _read(case: CaseBundle, bag: EmbeddingBag, request: Request) -> dict[str, Any]:
    own = choose_cards(bag.fingerprint, request.heads)
    opinions, silent = _form_opinions(own, bag, _gather_facts(case), named=request.heads)
    groups, novelty = group_tiles(bag), find_novelty(bag)
    return {
        "findings": describe_opinions(opinions, bag),
        "heads": [{"id": card.id, "version": card.version, "fingerprint": card.fingerprint} for card in own],
        "silent": silent,
        "groups": {"count": groups.count, "shares": [round(share, 4) for share in groups.shares]},
        "novelty": None
        if novelty is None
        else {"reference": novelty.reference, "novel_share": round(novelty.novel_share, 4)},
        "ask": _choose_regions(opinions, bag, novelty, case, request),
    }


def choose_cards(fingerprint: str, named: Sequence[str]) -> tuple[HeadCard, ...]:
    """Heads of an encoder that have a question in force, and those that were named.

    A named one that is not here, or is for another encoder, stays silent: a slide's answer must not hang on it.
    """
    found = {
        card.id: card
        for card in list_heads()
        if card.input.encoder_fingerprint == fingerprint and any(card.is_in_force(task) for task in card.tasks)
    }
    for name in named:
        try:
            card = find_head(name)
        except (UnknownHeadError, UntrustedHeadError):
            continue
        if card.input.encoder_fingerprint == fingerprint:
            found[card.id] = card
    return tuple(found.values())


def _form_opinions(
    cards: Sequence[HeadCard], bag: EmbeddingBag, facts: SlideFacts, *, named: Sequence[str]
) -> tuple[tuple[Opinion, ...], list[str]]:
    opinions: list[Opinion] = []
    silent: list[str] = []
    for card in cards:
        try:
            head = _load(card)
        except UntrustedHeadError:
            silent.append(f"{card.id}: its files are not what its card says; the operator installs it again.")
            continue
        opinions += give_opinions(HeadChoice((card,), card.id in named, ()), [head], bag, facts)
    if not cards:
        silent.append("No head of this encoder is in force here; groups and novelty need none.")
    return tuple(opinions), silent


_heads: dict[str, Head] = {}


def _load(card: HeadCard) -> Head:
    """A head, proven once in a process."""
    if card.fingerprint not in _heads:
        _heads[card.fingerprint] = load_head(card)
    return _heads[card.fingerprint]


def _gather_facts(case: CaseBundle) -> SlideFacts:
    summary = case.summary
    quality = QualityGrade(Verdict(summary.verdict), tuple(Reason(code, code) for code in summary.reasons))
    return SlideFacts(quality=quality, site=summary.site, is_resolution_estimated=summary.is_mpp_estimated)


def _choose_regions(
    opinions: Sequence[Opinion], bag: EmbeddingBag, novelty: Novelty | None, case: CaseBundle, request: Request
) -> list[list[int]]:
    """Rectangles to ask for: where the first head that is not sure looked, what is novel, and some by chance."""
    attention = next((o.attention for o in opinions if _is_unsure(o, research=request.ask_for_research)), None)
    if not request.ask_count or attention is None:
        return []
    percentile = None if novelty is None else novelty.percentile
    seed = int(bag.slide_sha256[:8], 16)
    asked = choose_tiles_to_ask(attention.weight, percentile, bag.grid.column_row, count=request.ask_count, seed=seed)
    edge = int(np.ceil(bag.grid.tile_level0_px))
    width, height = case.summary.width_px, case.summary.height_px
    corners = bag.grid.xy_level0_px[asked.tiles]
    return [[int(x), int(y), min(edge, width - int(x)), min(edge, height - int(y))] for x, y in corners]


def _is_unsure(opinion: Opinion, *, research: bool) -> bool:
    """Whether an answer that counts, or any where research may ask, goes less far than one label."""
    return any(finding.answer in _UNSURE and (finding.in_force or research) for finding in opinion.findings)
