"""A specialist is asked where the policy lets the question leave; what comes back is kept, in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from slideway.core.errors import PolicyError, UnknownRecordError, WrongUseError
from slideway.edge.app import Edge
from slideway.edge.consult import KIND, MAX_QUESTION_LETTERS, ask_specialist, guess_organ
from slideway.edge.node import Node, end_slide
from slideway.edge.web.app import create_pages
from slideway.store.consultations import Consultation
from slideway.store.outbox import OutboxState
from slideway.store.slides import SlideState

from .conftest import TENANT, Site
from .test_answers import SLIDE, actions, finding, read, say

QUESTION = "Is this in situ?"


def ask(node: Node, question: str = QUESTION, **more: Any) -> tuple[Consultation, bool]:
    with node.store.transaction(TENANT) as work:
        return ask_specialist(work, node, SLIDE, **({"organ": "lung", "question": question} | more))


def hear(node: Node, state: str, id_: str, *, sequence: int, who: str = "dr.x", **more: Any) -> None:
    kind = "consult-answer" if state == "answered" else "consult-state"
    body = {"consultation": id_, "slide": SLIDE, "state": state, "specialist": who, **more}
    say(node, kind, body, id_=f"{kind}:{id_}:{sequence}", sequence=sequence)


def look_at(node: Node, id_: str) -> Consultation:
    with node.store.reading(TENANT) as work:
        return work.consultations.get(id_)


@pytest.fixture
def client(edge: Edge) -> TestClient:
    return TestClient(create_pages(edge), base_url="http://127.0.0.1:8765", follow_redirects=False)


def send(client: TestClient, edge: Edge, path: str = f"/slides/{SLIDE}/ask", **more: Any) -> Any:
    form = {"token": edge.token, "organ": "lung", "question": QUESTION} | more
    return client.post(path, data=form, headers={"origin": "http://127.0.0.1:8765"})


def test_question_and_its_message_are_one_transaction_and_asked_once(edge: Edge) -> None:
    read(edge.node, [finding()])
    first, is_new = ask(edge.node)
    again, is_new_again = ask(edge.node, f"  {QUESTION}\r\n", is_urgent=True)
    assert (is_new, is_new_again) == (True, False)
    assert again == first
    with edge.node.store.reading(TENANT) as work:
        (row,) = [row for row in work.outbox.find_all() if row.kind == KIND]
    assert row.payload["body"] == {
        "consultation": first.consultation_id, "slide": SLIDE, "organ": "lung", "question": QUESTION, "urgent": False,
    }  # fmt: skip
    assert actions(edge.node).count("consultation-asked") == 1
    other, is_new = ask(edge.node, organ="breast")
    assert is_new
    assert other.consultation_id != first.consultation_id


def test_crash_between_question_and_commit_leaves_neither(edge: Edge) -> None:
    read(edge.node, [finding()])
    with pytest.raises(RuntimeError), edge.node.store.transaction(TENANT) as work:
        ask_specialist(work, edge.node, SLIDE, organ="lung", question=QUESTION)
        raise RuntimeError
    with edge.node.store.reading(TENANT) as work:
        assert work.consultations.of_slide(SLIDE) == []
        assert not [row for row in work.outbox.find_all() if row.kind == KIND]


@pytest.mark.parametrize(
    ("policy", "enrolled", "words"), [(None, True, "no policy file"), ("features", False, "not enrolled")]
)
def test_without_the_policys_leave_nothing_is_asked(
    policy: str | None, enrolled: bool, words: str, make_site: Callable[..., Site]
) -> None:
    edge = make_site(policy=policy, enrolled=enrolled).open()
    with edge.node.store.transaction(edge.node.tenant) as work:
        work.slides.accept(SLIDE)
    with pytest.raises(PolicyError, match=words), edge.node.store.transaction(edge.node.tenant) as work:
        ask_specialist(work, edge.node, SLIDE, organ="lung", question=QUESTION)
    page = TestClient(create_pages(edge), base_url="http://127.0.0.1").get(f"/slides/{SLIDE}").text
    assert "Nobody can be asked" in page
    assert "<textarea" not in page
    edge.node.store.close()


def test_a_rule_of_sites_holds_for_questions_too(make_site: Callable[..., Site]) -> None:
    site = make_site(policy="opinions")
    policy = site.settings.policy_file
    policy.write_text(policy.read_text("utf-8").replace("may_leave", 'sites = ["breast"]\nmay_leave'), "utf-8")
    edge = site.open()
    read(edge.node, [finding()], leaves=False)
    with pytest.raises(PolicyError, match="the question stays"):
        ask(edge.node)
    edge.node.store.close()


@pytest.mark.parametrize(
    ("question", "organ", "words"),
    [
        (" \n", "lung", "is empty"),
        ("x" * (MAX_QUESTION_LETTERS + 1), "lung", "4,001 letters"),
        ("x\0y", "lung", "no letter"),
        ("What of doe^jane 7734?", "lung", "name of the slide's file"),
        ("Is 7734 the one?", "lung", "a number in it"),
        ("And s26-00417?", "lung", "accession number"),
        (QUESTION, "Doe", "not a site"),
    ],
)
def test_text_that_may_not_leave_is_refused(question: str, organ: str, words: str, edge: Edge) -> None:
    read(edge.node, [finding()])
    with edge.node.store.transaction(TENANT) as work:
        work.slides.add_facts(SLIDE, {"places": {"/scans/Doe^Jane 7734.svs": "1:1:1", "/scans/a.svs": "1:1:1"}})
        work.cases.add("KZ2QGX7LB3MWOA5T", accession="S26-00417")
        work.slides.match(SLIDE, case_id="KZ2QGX7LB3MWOA5T")
    with pytest.raises(WrongUseError, match=words):
        ask(edge.node, question, organ=organ)
    ask(edge.node, "What is at a, about 77341 px from the left?")  # neither is the name, nor the number


def test_slide_that_is_unknown_or_was_rejected_is_not_asked_about(edge: Edge) -> None:
    with pytest.raises(UnknownRecordError):
        ask(edge.node)
    read(edge.node, [finding()])
    with edge.node.store.transaction(TENANT) as work:
        end_slide(work, edge.node, SLIDE, SlideState.REJECTED, "slide-broken")
    with pytest.raises(WrongUseError, match="rejected"):
        ask(edge.node)


def test_states_of_a_question_come_in_and_are_shown_with_their_times(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    id_ = ask(edge.node)[0].consultation_id
    assert "waits for the line" in client.get(f"/slides/{SLIDE}").text
    with edge.node.store.transaction(TENANT) as work:
        work.outbox.mark_acknowledged(f"{KIND}:{id_}", receipt="r")
    assert ">asked<" in client.get(f"/slides/{SLIDE}").text
    hear(edge.node, "taken", id_, sequence=5)
    assert look_at(edge.node, id_).specialist == "dr.x"
    hear(edge.node, "open", id_, sequence=6, who="")
    hear(edge.node, "taken", id_, sequence=7, who="dr.y")
    hear(edge.node, "open", id_, sequence=3, who="")  # late
    assert (look_at(edge.node, id_).state, look_at(edge.node, id_).specialist) == ("taken", "dr.y")
    hear(edge.node, "answered", id_, sequence=0, who="dr.z", answer={"text": "Yes <b>in situ</b>.", "grade": 1})
    for page in (client.get(f"/slides/{SLIDE}").text, client.get("/status").text):
        assert "Yes &lt;b&gt;in situ&lt;/b&gt;." in page
        assert "grade: 1" in page
        assert "dr.z" in page
        assert ">answered<" in page
        assert page.index("asked 20") < page.index("taken 20") < page.index("answered 20")
    assert "1 answered" in client.get("/status").text
    assert client.get("/api/status").json()["questions"]["answered"] == 1


def test_first_answer_stands_and_one_to_a_question_that_is_not_known_is_kept_too(edge: Edge) -> None:
    read(edge.node, [finding()])
    id_ = ask(edge.node)[0].consultation_id
    hear(edge.node, "answered", id_, sequence=1, answer={"text": "yes"})
    hear(edge.node, "answered", id_, sequence=2, answer={"text": "no"})
    hear(edge.node, "taken", id_, sequence=3)
    assert look_at(edge.node, id_).answer == {"text": "yes"}
    assert "consultation-changed" in actions(edge.node)
    hear(edge.node, "answered", "of-before", sequence=1, answer={"text": "maybe"})
    assert look_at(edge.node, "of-before").answer == {"text": "maybe"}
    hear(edge.node, "answered", "x", sequence=9, answer="no mapping")
    hear(edge.node, "answered", "a b", sequence=10, answer={})
    assert actions(edge.node).count("answer-malformed") == 2


def test_question_that_the_policy_withdrew_is_said_and_can_be_asked_again(
    client: TestClient, edge: Edge, make_site: Callable[..., Site]
) -> None:
    read(edge.node, [finding()])
    first = ask(edge.node)[0].consultation_id
    policy = edge.node.settings.policy_file
    allowed = policy.read_text("utf-8")
    edge.chores.run_once()
    policy.write_text(allowed.replace('may_leave = "features"', 'may_leave = "nothing"'), "utf-8")
    edge.chores.run_once()
    assert "not sent: the policy changed" in client.get(f"/slides/{SLIDE}").text
    with edge.node.store.reading(TENANT) as work:
        assert work.outbox.get(f"{KIND}:{first}").state is OutboxState.WITHDRAWN
    policy.write_text(allowed, "utf-8")
    second, is_new = ask(edge.node)
    assert is_new
    assert second.consultation_id != first


REFERRED = "ask_when_referred = true"


@pytest.mark.parametrize(
    ("setting", "site", "reason", "leaves", "asked", "note"),
    [
        (REFERRED, "lung", "not-sure", True, 1, "consultation-asked"),
        ("", "lung", "not-sure", True, 0, "slide-referred"),
        (REFERRED, "", "not-sure", True, 0, "consultation-not-asked"),
        (REFERRED, "lung", "rescan", True, 0, "slide-referred"),
        (REFERRED, "lung", "not-sure", False, 0, "slide-referred"),
    ],
)
def test_referred_slide_is_asked_about_by_itself_where_the_settings_say_so(
    setting: str, site: str, reason: str, leaves: bool, asked: int, note: str, make_site: Callable[..., Site]
) -> None:
    made = make_site()
    config = made.folder / "edge.toml"
    text = config.read_text("utf-8").replace("[reading]", f"[edge]\n{setting}\n[reading]\nsite = '{site}'")
    config.write_text(text, "utf-8")
    edge = made.open()
    with edge.node.store.transaction(TENANT) as work:
        work.slides.accept(SLIDE, facts={"leaving": {"sha256": "b" * 64}} if leaves else {})
        end_slide(work, edge.node, SLIDE, SlideState.REFERRED, reason)
    with edge.node.store.reading(TENANT) as work:
        rows = work.consultations.of_slide(SLIDE)
        assert [row.question["by"] for row in rows] == ["rule"] * asked
    assert note in actions(edge.node)
    edge.node.store.close()


def test_organ_is_what_the_laboratory_or_else_a_head_says(edge: Edge, make_site: Callable[..., Site]) -> None:
    said = finding(task="organ", labels=["thyroid"], kind="classes", probabilities={"thyroid": 0.9}, in_force=False)
    read(edge.node, [said])
    with edge.node.store.reading(TENANT) as work:
        slide = work.slides.get(SLIDE)
        assert guess_organ(work, edge.node, slide) == "thyroid"
        assert guess_organ(work, edge.node, slide, in_force_only=True) == ""  # a rule believes what is in force only


def test_form_says_what_leaves_before_it_is_sent(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    page = client.get(f"/slides/{SLIDE}").text
    assert "This leaves the hospital: the question as you write it" in page
    assert "opinions and features may leave" in page
    assert "Write no name" in page
    assert page.count("<option") == 22  # 21 sites, and none chosen


def test_sent_form_asks_once_and_leads_back_to_the_slide(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    for _ in range(2):
        answer = send(client, edge, urgent="yes")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/slides/{SLIDE}#asked")
    with edge.node.store.reading(TENANT) as work:
        (kept,) = work.consultations.of_slide(SLIDE)
    assert (kept.organ, kept.question["text"], kept.is_urgent) == ("lung", QUESTION, True)


def test_what_was_typed_is_not_lost_when_it_cannot_be_sent(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    answer = send(client, edge, organ="breast", question="\nlook at the\nleft </textarea> " + "x" * 5000, urgent="yes")
    assert answer.status_code == 422
    assert "letters" in answer.text
    assert "left &lt;/textarea&gt; xxx" in answer.text
    assert '<option value="breast" selected>' in answer.text
    assert 'value="yes" checked' in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"},
        {"referer": "http://127.0.0.1:8765/"},
    ],
)
def test_form_of_another_place_is_refused_even_with_the_token(
    headers: dict[str, str], client: TestClient, edge: Edge
) -> None:
    read(edge.node, [finding()])
    form = {"token": edge.token, "organ": "lung", "question": QUESTION}
    for action in ("ask", "urgent"):
        assert client.post(f"/slides/{SLIDE}/{action}", data=form, headers=headers).status_code == 403
    with edge.node.store.reading(TENANT) as work:
        assert work.consultations.of_slide(SLIDE) == []
        assert not work.slides.get(SLIDE).is_urgent


@pytest.mark.parametrize("token", ["", "x", "ä", None])
def test_form_without_this_starts_token_is_refused(token: str | None, client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    more = {} if token is None else {"token": token}
    form = {"organ": "lung", "question": QUESTION} | more
    for action in ("ask", "urgent"):
        headers = {"origin": "http://127.0.0.1:8765"}
        assert client.post(f"/slides/{SLIDE}/{action}", data=form, headers=headers).status_code == 403


def test_what_is_no_form_or_too_large_is_refused(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    headers = {"origin": "http://127.0.0.1:8765"}
    for content in (b"\xff\xfe", b"token=%FF", b"a&" * 50_000, b"{}"):
        assert client.post(f"/slides/{SLIDE}/ask", content=content, headers=headers).status_code == 403
    assert send(client, edge, path=f"/slides/{'d' * 64}/ask").status_code == 404
    assert send(client, edge, path=f"/slides/{'d' * 64}/urgent").status_code == 404
    assert send(client, edge, path="/slides/x/ask").status_code == 405


def test_urgent_button_puts_the_slide_first_and_is_gone(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    assert "/urgent" in client.get("/").text
    assert send(client, edge, path=f"/slides/{SLIDE}/urgent", back="list").headers["location"] == "/"
    assert "!! urgent" in client.get("/").text
    assert f'action="/slides/{SLIDE}/urgent"' not in client.get(f"/slides/{SLIDE}").text
