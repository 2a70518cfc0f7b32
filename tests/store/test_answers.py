"""Findings, reports and consultations: what was said is kept, and what is signed stands."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from slideway.core.errors import ConflictError, TransitionError
from slideway.store.consultations import ConsultationState
from slideway.store.faults import in_our_words
from slideway.store.reports import ReportState

SLIDE, HEAD = "a" * 64, "b" * 64
BY_HEAD = {"place": "edge", "head_id": "atlas", "head_version": "1", "head_sha256": HEAD, "fingerprint": HEAD}


@pytest.fixture
def ready(store):
    with store.transaction("north") as work:
        work.cases.add("case1")
        work.cases.add("case2")
        work.slides.accept(SLIDE, case_id="case1")
    return store


def refuse(store, statement):
    with pytest.raises(ConflictError, match="never"), in_our_words("store"), store.transaction("north") as work:
        work.slides._connection.execute(text(statement))


def test_a_finding_kept_twice_is_one_and_another_answer_is_refused(ready):
    with ready.transaction("north") as work:
        first = work.findings.record(SLIDE, "neoplastic", {"p": 0.5, "answer": "refer"}, **BY_HEAD)
        assert work.findings.record(SLIDE, "neoplastic", {"answer": "refer", "p": 0.5}, **BY_HEAD) == first
        with pytest.raises(ConflictError, match="first answer is kept"):
            work.findings.record(SLIDE, "neoplastic", {"p": 0.6}, **BY_HEAD)
        work.findings.record(SLIDE, "neoplastic", {"p": 0.6}, **{**BY_HEAD, "place": "cloud"})
        assert len(work.findings.of_slide(SLIDE)) == 2
        assert work.findings.of_slide(SLIDE, place="edge") == [first]
        assert work.findings.get(first.finding_id) == first
    refuse(ready, "UPDATE findings SET content = '{}'")


def test_exactly_what_was_shown_is_signed(ready):
    with ready.transaction("north") as work:
        shown = work.reports.draft("r1", case_id="case1", content={"text": "one"})
        changed = work.reports.draft("r1", case_id="case1", content={"text": "two"})
        assert (changed.version, changed.state) == (1, ReportState.DRAFT)
        with pytest.raises(ConflictError, match="show it again"):
            work.reports.sign("r1", 1, shown_sha256=shown.content_sha256, signed_by="u1")
        signed = work.reports.sign("r1", 1, shown_sha256=changed.content_sha256, signed_by="u1")
        assert (signed.content, signed.signed_by) == ({"text": "two"}, "u1")
        assert work.reports.sign("r1", 1, shown_sha256=changed.content_sha256, signed_by="u1") == signed
        with pytest.raises(TransitionError):
            work.reports.sign("r1", 1, shown_sha256=changed.content_sha256, signed_by="u2")
        with pytest.raises(TransitionError, match="amend"):
            work.reports.draft("r1", case_id="case1", content={"text": "three"})
        with pytest.raises(ConflictError, match="belongs to case"):
            work.reports.draft("r1", case_id="case2", content={})


def test_a_signed_report_stands_until_its_amendment_is_signed(ready):
    with ready.transaction("north") as work:
        one = work.reports.draft("r1", case_id="case1", content={"text": "one"})
        with pytest.raises(TransitionError):
            work.reports.amend("r1", content={"text": "two"})
        work.reports.sign("r1", 1, shown_sha256=one.content_sha256, signed_by="u1")
        two = work.reports.amend("r1", content={"text": "two"})
        with pytest.raises(TransitionError):
            work.reports.amend("r1", content={"text": "three"})
        assert work.reports.signed("r1").version == 1
        work.reports.sign("r1", 2, shown_sha256=two.content_sha256, signed_by="u2")
        assert [report.state for report in work.reports.versions("r1")] == ["superseded", "signed"]
        assert work.reports.signed("r1").version == 2 == work.reports.newest("r1").version
        assert len(work.reports.of_case("case1")) == 2 and work.reports.of_case("case2") == []
        assert work.reports.newest("r9") is None
    refuse(ready, "UPDATE reports SET content = '{}' WHERE version = 1")
    refuse(ready, "UPDATE reports SET signed_by = 'u9' WHERE version = 2")
    refuse(ready, "UPDATE reports SET state = 'draft' WHERE version = 2")
    refuse(ready, "DELETE FROM reports")


def test_a_consultation_is_asked_taken_and_answered_once(ready, clock):
    ask = {"slide_sha256": SLIDE, "organ": "kidney", "asked_by": "u1", "question": {"text": "?"}}
    with ready.transaction("north") as work:
        first = work.consultations.ask("c1", **ask, within_seconds=3600)
        assert work.consultations.ask("c1", **ask, within_seconds=60) == first
        with pytest.raises(ConflictError):
            work.consultations.ask("c1", **{**ask, "question": {"text": "!"}}, within_seconds=60)
        with pytest.raises(ConflictError, match="take it first"):
            work.consultations.answer("c1", specialist="s1", answer={"text": "yes"})
        taken = work.consultations.take("c1", specialist="s1")
        assert work.consultations.take("c1", specialist="s1") == taken
        with pytest.raises(TransitionError, match="by s1"):
            work.consultations.take("c1", specialist="s2")
        assert work.consultations.give_back("c1", specialist="s1").specialist is None
        work.consultations.take("c1", specialist="s2")
        clock.move(3601)
        assert work.consultations.count_overdue() == 1
        done = work.consultations.answer("c1", specialist="s2", answer={"text": "yes"})
        assert work.consultations.answer("c1", specialist="s2", answer={"text": "yes"}) == done
        assert done.state is ConsultationState.ANSWERED and not work.consultations.count_overdue()
        with pytest.raises(ConflictError, match="otherwise"):
            work.consultations.answer("c1", specialist="s2", answer={"text": "no"})
        with pytest.raises(TransitionError):
            work.consultations.withdraw("c1")
    refuse(ready, "UPDATE consultations SET answer = '{}'")


def test_later_changes_of_a_consultation_have_later_times_also_when_the_clock_is_set_back(ready, clock):
    with ready.transaction("north") as work:
        work.consultations.ask(
            "c1", slide_sha256=SLIDE, organ="kidney", asked_by="u1", question={}, within_seconds=3600
        )
        taken = work.consultations.take("c1", specialist="s1")
        given_back = work.consultations.give_back("c1", specialist="s1")  # in the same millisecond
        clock.move(-10 * 365 * 86_400)
        again = work.consultations.take("c1", specialist="s2")
    assert taken.changed_ms < given_back.changed_ms < again.changed_ms


def test_questions_are_routed_by_organ_and_centre_urgent_and_due_first(ready):
    with ready.transaction("south") as work:
        work.slides.accept(SLIDE)
    asked = [
        ("north", "late", "kidney", "", 900, False), ("south", "soon", "kidney", "", 60, False),
        ("north", "urgent", "kidney", "centre1", 999, True), ("north", "other", "breast", "centre2", 1, False),
    ]  # fmt: skip
    for tenant, name, organ, centre, seconds, is_urgent in asked:
        with ready.transaction(tenant) as work:
            work.consultations.ask(
                name, slide_sha256=SLIDE, organ=organ, centre=centre, asked_by="u", question={},
                within_seconds=seconds, is_urgent=is_urgent,
            )  # fmt: skip
    with ready.reading_of_all() as everything:
        desk = everything.consultations.find_open

        def names(**where):
            return [question.consultation_id for question in desk(**where)]

        assert names(organs=["kidney"]) == ["urgent", "soon", "late"]
        assert names(centre="centre2") == ["other", "soon", "late"]
        assert names(limit=1) == ["urgent"]
    with ready.transaction("north") as work:
        assert work.consultations.withdraw("late") == work.consultations.withdraw("late")
        assert [question.consultation_id for question in work.consultations.of_slide(SLIDE)] != []
        assert "late" not in [question.consultation_id for question in work.consultations.find_open()]


def test_a_specialist_sees_what_they_took_until_it_is_answered(ready, clock):
    with ready.transaction("south") as work:
        work.slides.accept(SLIDE)
    for tenant, name, seconds in (("north", "later", 900), ("south", "soon", 60), ("north", "free", 1)):
        with ready.transaction(tenant) as work:
            work.consultations.ask(
                name, slide_sha256=SLIDE, organ="kidney", asked_by="u", question={}, within_seconds=seconds
            )
            if name != "free":
                work.consultations.take(name, specialist="s1")
    clock.move(61)
    with ready.reading_of_all() as everything:
        assert [row.consultation_id for row in everything.consultations.find_taken("s1")] == ["soon", "later"]
        assert everything.consultations.find_taken("s2") == []
        assert everything.consultations.count_open() == {"kidney": 1}
        assert everything.consultations.count_overdue() == 2
    with ready.transaction("south") as work:
        work.consultations.answer("soon", specialist="s1", answer={"text": "yes"})
    with ready.reading("north") as work:
        assert [row.consultation_id for row in work.consultations.find_taken("s1")] == ["later"]
        assert work.consultations.count_overdue() == 1
