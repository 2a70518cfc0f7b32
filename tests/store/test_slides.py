"""Slides end in exactly one of three ways (I1), and no end changes (I2); cases, specimens and blocks."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import text

from slideway.core.errors import ConflictError, TransitionError, UnknownRecordError
from slideway.store.faults import in_our_words
from slideway.store.slides import ENDS, TRANSITIONS, SlideState, state_needs_reason

SLIDE = "a" * 64
WAYS = {
    SlideState.ACCEPTED: [],
    SlideState.ENCODED: ["encoded"],
    SlideState.SENT: ["encoded", "sent"],
    SlideState.ANSWERED: ["encoded", "sent", "answered"],
    SlideState.REPORTED: ["encoded", "reported"],
    SlideState.REFERRED: ["referred"],
    SlideState.REJECTED: ["rejected"],
}


def lead(work, slide, state):
    work.slides.accept(slide)
    for step in WAYS[state]:
        work.slides.move(slide, SlideState(step), reason="why" if state_needs_reason(SlideState(step)) else "")


def test_every_way_in_the_table_is_open_and_every_other_is_refused(store):
    for number, (start, end) in enumerate(itertools.product(SlideState, SlideState)):
        slide = f"{number:064x}"
        with store.transaction("north") as work:
            lead(work, slide, start)
        if end in TRANSITIONS[start]:
            with store.transaction("north") as work:
                assert work.slides.move(slide, end, reason="why").state is end
        elif start is not end:
            with pytest.raises(TransitionError), store.transaction("north") as work:
                work.slides.move(slide, end, reason="why")
            with store.reading("north") as work:
                assert work.slides.get(slide).state is start


def test_from_everywhere_an_end_can_be_reached_and_nothing_leads_out_of_one():
    assert set(TRANSITIONS) == set(SlideState)
    for state, to in TRANSITIONS.items():
        assert (not to) if state in ENDS else (to & ENDS)


def test_a_slide_delivered_twice_is_one_slide_and_keeps_its_state(store):
    with store.transaction("north") as work:
        lead(work, SLIDE, SlideState.REJECTED)
        assert work.slides.accept(SLIDE, size_bytes=5).state is SlideState.REJECTED
        assert work.slides.counts()[SlideState.REJECTED] == 1 and sum(work.slides.counts().values()) == 1


@pytest.mark.parametrize("end", ["rejected", "referred"])
def test_an_end_without_its_reason_is_refused(store, end):
    with store.transaction("north") as work:
        work.slides.accept(SLIDE)
        with pytest.raises(TransitionError, match="say why"):
            work.slides.move(SLIDE, SlideState(end))


def test_moving_a_slide_to_where_it_is_does_nothing_but_never_changes_the_reason(store, clock):
    with store.transaction("north") as work:
        lead(work, SLIDE, SlideState.REFERRED)
        before = work.slides.get(SLIDE)
        clock.move(5)
        assert work.slides.move(SLIDE, SlideState.REFERRED, reason="why") == before
        with pytest.raises(TransitionError, match="never changed"):
            work.slides.move(SLIDE, SlideState.REFERRED, reason="another")


@pytest.mark.parametrize("end", sorted(ENDS))
def test_the_database_itself_refuses_to_change_an_end(store, end):
    with store.transaction("north") as work:
        lead(work, SLIDE, end)
    for statement in ("UPDATE slides SET state = 'accepted'", "UPDATE slides SET reason = 'other'"):
        with (
            pytest.raises(ConflictError, match="never changes"),
            in_our_words("store"),
            store.transaction("north") as work,
        ):
            work.slides._connection.execute(text(statement))


def test_a_slide_is_matched_to_one_case_and_not_silently_to_another(store):
    with store.transaction("north") as work:
        work.slides.accept(SLIDE, container_id="C-1", facts={"mpp": 0.25})
        work.cases.add("case1")
        work.cases.add("case2")
        assert work.slides.match(SLIDE, case_id="case1").case_id == "case1"
        assert work.slides.match(SLIDE, case_id="case1").case_id == "case1"
        with pytest.raises(ConflictError):
            work.slides.match(SLIDE, case_id="case2")
        assert work.slides.add_facts(SLIDE, {"verdict": "readable"}).facts == {"mpp": 0.25, "verdict": "readable"}
        assert [slide.slide_sha256 for slide in work.slides.find_all(case_id="case1")] == [SLIDE]
        assert work.slides.find_all(case_id="case2") == [] == work.slides.find_all(state=SlideState.SENT)


def test_a_case_has_specimens_and_blocks_each_of_one_parent(store):
    with store.transaction("north") as work:
        work.cases.add("case1", accession="26-001", site="kidney")
        work.cases.add("case2", is_urgent=True)
        assert work.cases.add("case1", accession="26-001").site == "kidney"
        work.cases.add_specimen("s1", case_id="case1")
        work.cases.add_block("b1", specimen_id="s1")
        assert work.cases.find_by_accession("26-001").case_id == "case1"
        assert [case.case_id for case in work.cases.find_all()] == ["case2", "case1"]
        work.cases.make_urgent("case1")
        assert [specimen.specimen_id for specimen in work.cases.specimens("case1")] == ["s1"]
        assert [block.block_id for block in work.cases.blocks("s1")] == ["b1"]
        with pytest.raises(ConflictError):
            work.cases.add_specimen("s1", case_id="case2")
        with pytest.raises(ConflictError):
            work.cases.add("case3", accession="26-001")
        with pytest.raises(ConflictError):
            work.cases.add("case1", accession="26-002")
    with store.transaction("north") as work:
        work.cases.add_specimen("s2", case_id="case2")
        with pytest.raises(ConflictError):
            work.cases.add_block("b1", specimen_id="s2")
        with pytest.raises(UnknownRecordError, match="cases: nothing under nowhere"):
            work.cases.get("nowhere")
