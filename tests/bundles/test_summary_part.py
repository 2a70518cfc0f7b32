"""The summary: never larger than its room, every field checked on the way back, newer fields passed over."""

from dataclasses import fields, replace

import imagecodecs
import msgpack
import pytest

from slideway.bundles.summary_part import dump_summary, load_summary
from slideway.core.bundle import BriefFinding, BundleSummary
from slideway.core.errors import BrokenBundleError


@pytest.fixture
def summary(toy):
    return replace(toy(20).summary, codec="steps")


def repack(summary, **changed):
    plain = msgpack.unpackb(imagecodecs.zstd_decode(dump_summary(summary, room=2_000))) | changed
    return imagecodecs.zstd_encode(msgpack.packb({key: value for key, value in plain.items() if value != "gone"}), 3)


def test_a_summary_comes_back(summary):
    assert load_summary(dump_summary(summary, room=2_000), "a bundle") == summary
    bare = replace(summary, novel_share=None, case="", site="", reasons=(), findings=())
    assert load_summary(dump_summary(bare, room=2_000), "a bundle") == bare


def test_labels_go_before_findings_and_findings_from_the_end(summary):
    many = tuple(
        BriefFinding(f"task-{i}", "set", (f"a {i} b" * 9, "second", "third", "fourth"), 0.5, True) for i in range(60)
    )
    full = replace(summary, findings=many)
    kept = []
    for room in (4_000, 900, 600, 330):
        content = dump_summary(full, room=room)
        assert len(content) <= room
        shown = load_summary(content, "a bundle")
        assert [finding.task for finding in shown.findings] == [f"task-{i}" for i in range(len(shown.findings))]
        assert len(shown.findings) + shown.findings_left_out == 60
        kept.append((len(shown.findings), len(shown.findings[0].labels) if shown.findings else 0))
    assert kept[0] == (60, 3)
    assert kept[-1][0] < kept[1][0]
    with pytest.raises(ValueError, match="does not fit"):
        dump_summary(full, room=100)


def test_fields_of_a_newer_minor_version_are_passed_over(summary):
    assert load_summary(repack(summary, stain="HE", nested={"a": [1]}), "a bundle") == summary


@pytest.mark.parametrize(
    "field", [field.name for field in fields(BundleSummary) if not field.name.startswith("findings")]
)
def test_a_summary_that_lacks_something_is_refused(summary, field):
    with pytest.raises(BrokenBundleError, match="summary"):
        load_summary(repack(summary, **{field: "gone"}), "a bundle")


NAN, INF = float("nan"), float("inf")
FINDING = ["task", "answer", ["label"], 0.5, True]


@pytest.mark.parametrize(
    "changed",
    [
        {"slide_sha256": bytes(31)},
        {"slide_sha256": "5a" * 32},
        {"fingerprint": 0.5},
        {"case": 7},
        {"case": "\x1b[2J"},
        {"site": ["lung"]},
        {"verdict": None},
        {"width_px": -1},
        {"height_px": 2**31},
        {"tiles": 2**63},
        {"tiles": 19.0},
        {"tiles": True},
        {"tiles": 21},
        {"tiles_left_out": 21},
        {"tissue_tiles": 19},
        {"tile_px": 0},
        {"mpp": NAN},
        {"mpp": 0.0},
        {"mpp": "0.25"},
        {"tile_mpp": INF},
        {"tile_mpp": 1e-300},
        {"tissue_mm2": NAN},
        {"tissue_mm2": -1.0},
        {"novel_share": 1.5},
        {"novel_share": NAN},
        {"is_sampled": 1},
        {"is_mpp_estimated": None},
        {"reasons": "blurred"},
        {"reasons": [1]},
        {"findings": {"a": 1}},
        {"findings": [FINDING[:4]]},
        {"findings": [[*FINDING, 1]]},
        {"findings": [[*FINDING[:2], "label", 0.5, True]]},
        {"findings": [[*FINDING[:3], NAN, True]]},
        {"findings": [[*FINDING[:3], 1.5, True]]},
        {"findings": [[*FINDING[:4], 1]]},
        {"findings_left_out": -1},
        {"codec": b"steps"},
    ],
    ids=str,
)
def test_a_value_of_another_type_or_out_of_range_is_refused(summary, changed):
    with pytest.raises(BrokenBundleError, match="summary"):
        load_summary(repack(summary, **changed), "a bundle")


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\x91" * 50_000, b"\xdd\xff\xff\xff\xff", b"\x90", b"\x01", msgpack.packb({1: 2}), b"\xd4\x01\x01"],
    ids=range(8),
)
def test_something_else_than_a_summary_is_refused(raw):
    for content in (raw, imagecodecs.zstd_encode(raw, 3)):
        with pytest.raises(BrokenBundleError, match="summary"):
            load_summary(content, "a bundle")


def test_a_summary_that_unpacks_to_gigabytes_is_refused():
    bomb = imagecodecs.zstd_encode(bytes(100_000_000), 3)
    with pytest.raises(BrokenBundleError, match="summary"):
        load_summary(bomb, "a bundle")
