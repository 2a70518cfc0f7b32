"""The status says what a person must see to: a line that is down and why, a file that cannot be read, a wrong clock."""

from __future__ import annotations

import dataclasses

import pytest

from slideway.edge.app import Edge
from slideway.edge.status import ALARM, EdgeStatus, describe, find_attention
from slideway.store.outbox import OutboxState
from slideway.sync.identity import read_endpoint, write_endpoint
from slideway.sync.pump import LineReport, LineState

from .conftest import TENANT
from .test_answers import SLIDE, finding, read


def with_line(status: EdgeStatus, state: str, reason: str = "") -> EdgeStatus:
    changed = dataclasses.replace(status, line=state, line_reason=reason)
    return dataclasses.replace(changed, attention=tuple(find_attention(changed)))


def test_bundle_whose_file_cannot_be_read_is_said_and_the_others_go_on(edge: Edge) -> None:
    read(edge.node, [finding()])
    assert edge.status().unreadable == 0
    with edge.node.store.transaction(TENANT) as work:
        rows = [row for row in work.outbox.find_all(slide_sha256=SLIDE) if row.kind == "bundle"]
        work.outbox.mark_failed(rows[0].key, reason="blob-missing")
        work.outbox.mark_failed(rows[1].key, reason="line-down")
    status = edge.status()
    assert status.unreadable == 1
    assert "1 thing cannot leave, for the file in state/outgoing cannot be read" in dict(status.attention)[ALARM]
    with edge.node.store.transaction(TENANT) as work:
        work.outbox.mark_acknowledged(rows[0].key, receipt="r")
        assert work.outbox.get(rows[0].key).state is OutboxState.ACKNOWLEDGED
    assert edge.status().unreadable == 0


@pytest.mark.parametrize("state", ["captive", "clock", "refused", "revoked"])
def test_line_that_a_person_must_mend_is_an_alarm_with_what_it_said(edge: Edge, state: str) -> None:
    said = describe(with_line(edge.status(), state, "the certificate is valid from 2026."))
    assert any(sentence.startswith("ALARM: The line:") for sentence in said)
    (line,) = [sentence for sentence in said if sentence.startswith("Line:")]
    assert line.endswith("It says: the certificate is valid from 2026.")
    assert ".." not in line


def test_line_that_is_only_down_is_no_alarm(edge: Edge) -> None:
    said = describe(with_line(edge.status(), "down", "nobody answers"))
    assert not any("ALARM" in sentence for sentence in said)
    assert any("reading goes on without it" in sentence for sentence in said)


def test_the_line_is_what_the_pump_reports(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edge.pump is not None
    report = dataclasses.replace(
        edge.pump.report(), state=LineState.CAPTIVE, reason="a login page", seconds_to_wait=9.0
    )
    assert isinstance(report, LineReport)
    monkeypatch.setattr(edge.pump, "report", lambda: report)
    status = edge.status()
    assert (status.line, status.line_reason, status.retry_seconds) == ("captive", "a login page", 9.0)


def test_node_without_a_line_says_how_its_things_leave(edge: Edge) -> None:
    endpoint = read_endpoint(edge.node.places.endpoint)
    write_endpoint(dataclasses.replace(endpoint, url=""), edge.node.places.endpoint)
    said = describe(edge.status())
    assert "Line: none: what waits leaves on a stick, by `slideway edge export FOLDER`." in said
    edge.node.places.endpoint.unlink()
    assert "Line: no cloud: this node is not enrolled." in describe(edge.status())
