"""Take bundles in: believe nothing, keep what is right durably, and let it take effect once.

Order of a whole bundle: verified, blob stored, then slide, job and inbox row in one transaction, then the receipt. What
is refused gets no receipt, but an entry in the audit and a message that says why.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

from slideway.bundles.build import OPINION
from slideway.bundles.container import BundleHead
from slideway.bundles.policy import Level
from slideway.bundles.read import CaseBundle, read_bundle
from slideway.cloud.logs import log
from slideway.cloud.metrics import Metrics
from slideway.cloud.opinions import put_enough, put_opinion, put_rejected, put_settled_opinion
from slideway.cloud.regions import MAX_REGION_BYTES, MAX_REGIONS, Region, read_placed_region, require_inside
from slideway.cloud.settings import CloudSettings
from slideway.cloud.slides import Sent, accept_slide, advance, lets_regions, match_case
from slideway.core.bundle import BundleSummary
from slideway.core.catalogue import load_catalogue
from slideway.core.crash import crash_here
from slideway.core.errors import (
    BlobError,
    BrokenBundleError,
    ConflictError,
    LockedBundleError,
    PolicyError,
    RecordError,
    SlidewayError,
    StoreError,
    UnknownRecordError,
    UntrustedBundleError,
)
from slideway.core.pseudonym import is_pseudonym
from slideway.core.tissue import Verdict
from slideway.store.blobs import CHUNK_BYTES, Blobs
from slideway.store.database import Store, now_ms
from slideway.store.facet import Clock
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work
from slideway.sync.identity import Keys
from slideway.sync.outgoing import Piece, UploadPlan
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Intake

DIAGNOSE = "diagnose"
_REMEMBERED = 1024  # bundles on their way through this process; one that was pushed out is read again
_SEEN_MS = 30_000
_MOST_KEPT = 8  # unfinished bundles of one slide from one node
# Large files that are verified at a time, of all threads of this process: each is read whole, and opened.
_LARGE = BoundedSemaphore(2)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
# Nothing in a slide's vectors can be read then: more of the bundle would change nothing.
_HOPELESS = (Verdict.NO_TISSUE.value, Verdict.RESCAN.value)


@dataclass(frozen=True)
class Verified:
    """What is known to be right of a bundle so far.

    Attributes:
        end_bytes: How far it was read.
        slide: Hash of the slide.
        facts: What the store keeps of it; no patient data.
        case: Pseudonym of the case; empty without.
        has_tiles: Vectors are among what came.
        prefix_sha256: Blob of what came so far, when it was kept by itself; empty otherwise.
    """

    end_bytes: int
    slide: str
    facts: dict[str, Any]
    case: str
    has_tiles: bool
    prefix_sha256: str = ""


class Ingest(Intake):
    """What the cloud does with what nodes send."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        keys: Keys,
        settings: CloudSettings,
        metrics: Metrics,
        *,
        clock: Clock = now_ms,
    ) -> None:
        self._store, self._blobs, self._keys, self._settings = store, blobs, keys, settings
        self._metrics, self._clock = metrics, clock
        self._verified: OrderedDict[tuple[str, str, str], Verified] = OrderedDict()
        self._lock = Lock()

    def keep(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        """Verify what is here, and make it durable where this machine's folder of parts is not enough.

        Raises:
            BrokenBundleError: Not a bundle, changed on the way, or not what was announced.
            UntrustedBundleError: Not signed by the node that sends it.
            LockedBundleError: Locked to another key, or not locked at all.
            PolicyError: It holds a name where a pseudonym belongs, or pixels that nobody said may leave.
        """
        started = time.monotonic()
        try:
            if plan.kind == "bundle":
                self._keep_bundle(sender, plan, piece, path)
            else:
                self._keep_region(sender, plan, path)
        except (StoreError, RecordError, BlobError):
            raise  # ours, not the file's: refused for good, its slide would end without an opinion
        except SlidewayError as error:
            self._reject(sender, plan, error)
            raise
        self._metrics.acknowledge_seconds.labels(plan.kind).observe(time.monotonic() - started)
        crash_here("cloud.after-verified")

    def take(self, work: Work, sender: Sender, plan: UploadPlan, piece: Piece) -> None:
        """Note a tier: slide, case, job, bytes; in the transaction that makes the receipt true."""
        if plan.kind == "bundle":
            self._take_bundle(work, sender, plan, piece)
        else:
            self._take_region(work, sender, plan)
        size = piece.end_bytes - piece.start_bytes
        work.bytes.record(plan.slide, piece.tier, "in", size, 0, sender.node, sender.transport)
        self._metrics.acknowledgements.labels(plan.kind, f"t{piece.tier}").inc()
        crash_here("cloud.before-receipt")

    def stop_at(self, work: Work, sender: Sender, plan: UploadPlan) -> int | None:
        """Tier 1, once tier 0 says that the slide cannot be read.

        Raises:
            PolicyError: A whole slide: refused at its first bytes, not after gigabytes.
        """
        _require_wanted(plan)
        verified = self._find(sender, plan)
        if plan.kind != "bundle" or (verified is not None and not _is_hopeless(verified)):
            return None
        if work.inbox.find(sender.node, plan.pieces[0].key) is None:
            return None
        facts = verified.facts if verified is not None else _find_facts(work, plan)
        return 1 if facts.get("verdict") in _HOPELESS else None

    def rescue(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        """Keep the tiers that were acknowledged as a blob by themselves: their part file goes, the rest never came.

        The slide's facts name the blob, so that it can be found: `kept`, by hash of the bundle. Of a slide that has
        `_MOST_KEPT` from this node no further one is kept: a node that begins and gives up for ever fills nothing.
        """
        if plan.kind != "bundle":
            return  # a region has one tier: it was stored when it was acknowledged
        verified, sha256 = self._find(sender, plan), ""
        known = plan.slide or (verified.slide if verified is not None else "")
        if self._has_room(sender, plan, known):
            content = _read_first(path, piece.end_bytes)
            sha256 = hashlib.sha256(content).hexdigest()
            self._blobs.put(sender.tenant, content, sha256)

        def note(work: Work) -> None:
            if sha256 and known and work.slides.find(known) is not None:
                slide = work.slides.get(known)  # held: others may note what they kept at the same time
                row = {"blob": sha256, "tier": piece.tier, "node": sender.node}
                work.slides.add_facts(known, {"kept": {**slide.facts.get("kept", {}), plan.sha256: row}})
            self._audit(work, sender, "bundle-unfinished", plan, blob=sha256, tier=piece.tier)

        self._store.retrying(sender.tenant, note)

    def _has_room(self, sender: Sender, plan: UploadPlan, known: str) -> bool:
        """Whether a further unfinished bundle of a slide may be kept for this node."""
        with self._store.reading(sender.tenant) as work:
            slide = work.slides.find(known) if known else None
        kept = {} if slide is None else slide.facts.get("kept", {})
        return plan.sha256 in kept or sum(row["node"] == sender.node for row in kept.values()) < _MOST_KEPT

    def _keep_region(self, sender: Sender, plan: UploadPlan, path: Path) -> None:
        """Verify pixels as bundles are: by key, lock, slide, place, and what the node's policy lets leave."""
        _require_wanted(plan)
        if not plan.slide:
            raise BrokenBundleError("a region names its slide; the sender's program is at fault: tell them")
        if plan.length_bytes > MAX_REGION_BYTES:
            raise BrokenBundleError(f"a region has at most {MAX_REGION_BYTES:,} bytes; ask for smaller ones")
        with _in_turn(plan.length_bytes):
            content = _read_first(path, plan.length_bytes)
            region = read_placed_region(content, key=self._keys.receiving)
            self._require_sender(sender, region.head)
            self._require_lock(region.head)
            with self._store.reading(sender.tenant) as work:
                _require_place(work, sender, plan, region)
            self._blobs.put(sender.tenant, content, plan.sha256)
        facts = {"rectangle": list(region.rectangle)}
        self._remember(sender, plan, Verified(plan.length_bytes, plan.slide, facts, "", has_tiles=False))

    def _take_region(self, work: Work, sender: Sender, plan: UploadPlan) -> None:
        known = self._require_known(sender, plan)
        slide = accept_slide(work, plan.slide, sender.node)
        row = {"kind": plan.kind, "node": sender.node, "bytes": plan.length_bytes, **known.facts}
        work.slides.add_facts(plan.slide, {"pixels": {**slide.facts.get("pixels", {}), plan.sha256: row}})
        self._audit(work, sender, "region-taken", plan)

    def _keep_bundle(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        known = self._find(sender, plan)
        if known is None or known.end_bytes < piece.end_bytes:
            known = self._verify(sender, plan, piece, path)
        is_last = piece == plan.pieces[-1]
        if is_last:
            source = path.read_bytes() if plan.length_bytes <= CHUNK_BYTES else path
            self._blobs.put(sender.tenant, source, plan.sha256)
        elif self._is_worth_keeping(plan, piece, known):
            content = _read_first(path, piece.end_bytes)
            sha256 = hashlib.sha256(content).hexdigest()
            self._blobs.put(sender.tenant, content, sha256)
            known = Verified(known.end_bytes, known.slide, known.facts, known.case, known.has_tiles, sha256)
        self._remember(sender, plan, known)

    def _is_worth_keeping(self, plan: UploadPlan, piece: Piece, known: Verified) -> bool:
        """A first part by itself: when nothing more will come, or when it can be answered before the rest comes."""
        if piece.tier == 0 or _is_hopeless(known):
            return piece.tier == 0 and _is_hopeless(known)
        can_answer = self._settings.worker.provisional_after_seconds > 0 and known.has_tiles
        return can_answer and piece.tier == 1 and known.end_bytes < plan.length_bytes

    def _verify(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> Verified:
        """Read as far as came; where that is much, not more than a few threads at a time."""
        with _in_turn(piece.end_bytes):
            return self._read_whole(sender, plan, piece, path)

    def _read_whole(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> Verified:
        """Read as far as came: all of it when it has the hash that was announced, else this tier and those before."""
        end = piece.end_bytes
        if path.stat().st_size == plan.length_bytes <= CHUNK_BYTES:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == plan.sha256:
                end = plan.length_bytes
        else:
            content = b""
        source = path if end == plan.length_bytes else _read_first(path, end)
        case = read_bundle(content if content and end == plan.length_bytes else source, key=self._keys.receiving)
        self._require_sender(sender, case.head)
        self._require_lock(case.head)
        _require_announced(case, plan)
        _require_no_names(case.summary)
        summary = case.summary
        return Verified(end, summary.slide_sha256, _gather_facts(case, plan), summary.case, _has_tiles(case))

    def _require_sender(self, sender: Sender, head: BundleHead) -> None:
        key = sender.public_key or self._look_up_key(sender)
        if head.signer is None or base64.b64encode(head.signer).decode("ascii") != key:
            raise UntrustedBundleError(
                "this is not signed with the key that its sender was enrolled with; enrol the node again, or "
                "find out who made it"
            )

    def _look_up_key(self, sender: Sender) -> str:
        """The key of who sends from a folder: nobody looked it up when a request began."""
        try:
            with self._store.reading(sender.tenant) as work:
                return work.nodes.get(sender.node).public_key
        except UnknownRecordError as error:
            raise UntrustedBundleError("its sender is no node of this tenant") from error

    def _require_lock(self, head: BundleHead) -> None:
        if head.lock is None and self._settings.uploads.require_lock:
            raise LockedBundleError("this is not locked; lock it to the cloud's receiving key, see the endpoint file")

    def _take_bundle(self, work: Work, sender: Sender, plan: UploadPlan, piece: Piece) -> None:
        known = self._require_known(sender, plan)
        is_whole = piece == plan.pieces[-1]
        if known.end_bytes == plan.length_bytes and not is_whole:
            return  # all of it is here: its last tier, in this same transaction, notes everything at once
        sent = Sent(plan.sha256, _name_model(known)) if is_whole else None
        slide = accept_slide(work, known.slide, sender.node, known.facts, sent=sent)
        match_case(work, slide, known.case, str(known.facts["site"]))
        if is_whole:
            self._finish(work, sender, plan, known, slide)
        elif piece.tier == 0 and _is_hopeless(known) and known.end_bytes < plan.length_bytes:
            put_enough(work, sender.node, known.slide, plan.sha256, from_tier=1)
            put_opinion(work, sender.node, describe_hopeless(known, plan.sha256))
            self._audit(work, sender, "bundle-enough", plan)
        elif piece.tier == 1 and known.prefix_sha256 and not _is_hopeless(known):
            wait_ms = round(self._settings.worker.provisional_after_seconds * 1000)
            payload = {"bundle": plan.sha256, "blob": known.prefix_sha256, "tier": 1}
            model = f"{known.facts['fingerprint']}:t1"
            at_ms = self._clock() + wait_ms
            work.jobs.enqueue(known.slide, DIAGNOSE, model=model, payload=payload, not_before_ms=at_ms, priority=200)

    def _finish(self, work: Work, sender: Sender, plan: UploadPlan, known: Verified, slide: SlideRecord) -> None:
        payload, is_urgent = {"bundle": plan.sha256, "blob": plan.sha256, "tier": 2}, slide.is_urgent
        job = work.jobs.enqueue(known.slide, DIAGNOSE, model=_name_model(known), payload=payload, is_urgent=is_urgent)
        advance(work, known.slide, SlideState.ENCODED, held=slide)
        put_settled_opinion(work, slide, sender.node, job)  # a job that goes on gives its opinion itself
        self._audit(work, sender, "bundle-taken", plan, level=str(known.facts["level"]))
        self._note_seen(work, sender)
        self._metrics.bundles.inc()

    def _note_seen(self, work: Work, sender: Sender) -> None:
        if sender.seen_ms is not None and abs(self._clock() - sender.seen_ms) <= _SEEN_MS:
            return  # as this request's first look into the store saw it
        node = work.nodes.get(sender.node)
        if node.seen_ms is None or abs(self._clock() - node.seen_ms) > _SEEN_MS:
            work.nodes.note_seen(sender.node, version=node.version, status=node.status)

    def _reject(self, sender: Sender, plan: UploadPlan, error: SlidewayError) -> None:
        def reject(work: Work) -> None:
            self._audit(work, sender, f"{plan.kind}-rejected", plan, code=error.code)
            put_rejected(work, sender.node, plan.slide, plan.sha256, kind=plan.kind, code=error.code, text=str(error))

        self._metrics.refusals.labels(error.code).inc()
        log(f"{plan.kind}-rejected", tenant=sender.tenant, node=sender.node, bundle=plan.sha256, code=error.code)
        self._store.retrying(sender.tenant, reject)

    def _audit(self, work: Work, sender: Sender, action: str, plan: UploadPlan, **details: str | int) -> None:
        slide = plan.slide or "-"
        work.audit.append(action, actor=sender.node, subject=slide, details={"sha256": plan.sha256, **details})

    def _find(self, sender: Sender, plan: UploadPlan) -> Verified | None:
        with self._lock:
            return self._verified.get((sender.tenant, sender.node, plan.sha256))

    def _require_known(self, sender: Sender, plan: UploadPlan) -> Verified:
        known = self._find(sender, plan)
        if known is None:  # kept by `keep` just now; only a flood of 1,024 others could have pushed it out
            raise StoreError(f"what was read of this {plan.kind} is forgotten; send its last part again")
        return known

    def _remember(self, sender: Sender, plan: UploadPlan, known: Verified) -> None:
        with self._lock:
            self._verified[sender.tenant, sender.node, plan.sha256] = known
            while len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)


def _name_model(known: Verified) -> str:
    """What reads a bundle: its encoder's heads, or, without vectors, nothing of them; the first says more later."""
    fingerprint = str(known.facts["fingerprint"])
    return fingerprint if known.has_tiles else f"{fingerprint}:opinions"


def _in_turn(n_bytes: int) -> AbstractContextManager[object]:
    """Wait for room in memory for a large file; a small one waits for nobody."""
    return _LARGE if n_bytes > CHUNK_BYTES else nullcontext()


def _require_wanted(plan: UploadPlan) -> None:
    if plan.kind == "slide":
        raise PolicyError("whole slides are not taken by this cloud: it asks for regions, and a person for the rest")


def _require_place(work: Work, sender: Sender, plan: UploadPlan, region: Region) -> None:
    """A region is of a slide that we know, inside it, and its node said that regions may leave."""
    if not lets_regions(work, sender.node):
        raise PolicyError("its node did not say that regions may leave; nothing of it was kept")
    if region.slide != plan.slide:
        raise BrokenBundleError("it is of another slide than its upload says; the sender's program is at fault")
    slide = work.slides.find(plan.slide)
    if slide is None or sender.node not in slide.facts.get("nodes", []) or "width_px" not in slide.facts:
        raise BrokenBundleError("no bundle of this slide came from its node before; send that first")
    require_inside(region.rectangle, int(slide.facts["width_px"]), int(slide.facts["height_px"]))
    pixels = slide.facts.get("pixels", {})
    if plan.sha256 not in pixels and len(pixels) >= MAX_REGIONS:
        raise PolicyError(f"a slide has at most {MAX_REGIONS} regions here; nothing of it was kept")


def describe_hopeless(known: Verified, bundle: str) -> dict[str, Any]:
    """The opinion on a slide whose quality lets nothing be read."""
    return {
        "slide": known.slide,
        "bundle": bundle,
        "tier": 0,
        "provisional": False,
        "quality": known.facts["verdict"],
        "tiles": 0,
        "findings": [],
        "heads": [],
        "silent": ["The slide's quality lets no head read it."],
        "groups": None,
        "novelty": None,
    }


def _find_facts(work: Work, plan: UploadPlan) -> Mapping[str, Any]:
    """What was noted of a bundle before this process began."""
    slide = work.slides.find(plan.slide) if plan.slide else None
    return slide.facts if slide is not None and slide.facts.get("bundle") == plan.sha256 else {}


def _is_hopeless(known: Verified) -> bool:
    return known.facts["verdict"] in _HOPELESS


def _has_tiles(case: CaseBundle) -> bool:
    return any(name.startswith("tiles-") for name in case.contents)


def _require_no_names(summary: BundleSummary) -> None:
    """Refuse words where only a pseudonym or an id belongs: they could be a name."""
    if summary.case and not is_pseudonym(summary.case):
        raise PolicyError("what stands for the case in this bundle is no pseudonym; nothing of it was kept")
    if summary.site and summary.site not in {site.id for site in load_catalogue().sites}:
        raise PolicyError("its site is none of the catalogue; nothing of it was kept")
    if not all(_ID.fullmatch(word) for word in (summary.verdict, summary.encoder_id, summary.fingerprint)):
        raise PolicyError("a word in its summary is not of the form of an id; nothing of it was kept")


def _require_announced(case: CaseBundle, plan: UploadPlan) -> None:
    """Tiers end where the metadata says, and it is about the slide that the metadata says."""
    end, ends = 0, []
    for tier in range(len(plan.pieces)):
        end += case.head.bytes_of_tier(tier)
        ends.append(end)
    if tuple(ends) != plan.ends_bytes or case.head.total_bytes != plan.length_bytes:
        raise BrokenBundleError(
            "its tiers do not end where its upload says; the sender's program is at fault: tell them"
        )
    if plan.slide and plan.slide != case.summary.slide_sha256:
        raise BrokenBundleError("it is about another slide than its upload says; the sender's program is at fault")


def _gather_facts(case: CaseBundle, plan: UploadPlan) -> dict[str, Any]:
    summary = case.summary
    has_vectors = any(entry.name.startswith("tiles-") for entry in case.head.entries)
    level = Level.FEATURES if has_vectors else Level.OPINIONS
    names = (
        "verdict",
        "site",
        "tissue_mm2",
        "tiles",
        "encoder_id",
        "fingerprint",
        "mpp",
        "width_px",
        "height_px",
        "novel_share",
    )
    return {
        **{name: getattr(summary, name) for name in names},
        "bundle": plan.sha256,
        "level": level.word,
        "edge_findings": [asdict(finding) for finding in summary.findings],
        "has_opinion": any(entry.name == OPINION for entry in case.head.entries),
    }


def _read_first(path: Path, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(n_bytes)
    if len(content) < n_bytes:
        raise ConflictError("the part file is shorter than was noted; the upload begins again")
    return content
