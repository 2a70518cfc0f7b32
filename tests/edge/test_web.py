"""The pages: for this computer only, without scripts, with no name in any address."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from slideway.core.errors import BusyStoreError, WrongUseError
from slideway.edge.app import Edge
from slideway.edge.web.app import create_pages
from slideway.sync.serving import listen

from .test_answers import SLIDE, finding, opinion, read, say


@pytest.fixture
def client(edge: Edge) -> TestClient:
    return TestClient(create_pages(edge), base_url="http://127.0.0.1:8765")


def test_first_page_says_that_nothing_has_come_yet(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "No slide has come yet" in answer.text
    assert "<script" not in answer.text


@pytest.mark.parametrize(
    "path", ["/", "/status", f"/slides/{SLIDE}", "/slides/x", "/style.css", "/api/status", "/nowhere"]
)
def test_every_answer_lets_nothing_foreign_load_and_nobody_frame_it(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "192.168.0.9:8765"])
def test_a_name_that_is_not_ours_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:8765", "LOCALHOST"])
def test_this_computers_own_names_are_let_in(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_pages_are_only_looked_at(client: TestClient, method: str) -> None:
    answer = client.request(method, "/", headers={"origin": "http://evil.example"})
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_store_that_does_not_answer_is_told_as_not_now(
    client: TestClient, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise BusyStoreError("slideway.db: another transaction holds what this one needs; try again")

    monkeypatch.setattr(edge, "status", refuse)
    answer = client.get("/")
    assert (answer.status_code, answer.text.partition(";")[0]) == (503, "not now: store-busy")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_slide_shows_both_opinions_beside_each_other(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    assert "The cloud has not answered yet" in client.get(f"/slides/{SLIDE}").text
    say(edge.node, "opinion", opinion([finding(labels=("no",))]))
    page = client.get(f"/slides/{SLIDE}").text
    assert "they contradict each other" in page
    assert page.index(">yes<") < page.index(">no<")
    assert "not a diagnosis" in page
    listed = client.get("/?show=refer").text
    assert "a person decides" in listed
    assert "No slide" not in listed


def test_a_name_is_shown_and_stands_in_no_address(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    with edge.node.store.transaction(edge.node.tenant) as work:
        work.slides.add_facts(SLIDE, {"places": {"/scans/Doe <b>Jane.svs": "1:1:1"}})
    page = client.get("/").text
    assert "Doe &lt;b&gt;Jane.svs" in page
    addresses = [part.split('"')[0] for part in page.split('href="')[1:] + page.split('src="')[1:]]
    assert addresses
    assert not any("Doe" in address for address in addresses)


def test_report_is_served_so_that_it_can_run_nothing(client: TestClient, edge: Edge) -> None:
    folder = edge.node.places.answers / SLIDE
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    policy = client.get(f"/slides/{SLIDE}/report").headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script" not in policy
    assert "allow" not in policy


@pytest.mark.parametrize("name", ["%2e%2e%2fkeys", "..%2f..%2fkeys", "A" * 64, "a" * 63, "%00"])
def test_nothing_but_a_hash_becomes_a_path(client: TestClient, name: str) -> None:
    for ending in ("", "/report", "/thumbnail"):
        assert client.get(f"/slides/{name}{ending}").status_code == 404


def test_status_page_and_json_say_the_same(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    found = client.get("/api/status").json()
    assert found["slides"]["encoded"] == 1
    assert found["waiting"] == 3
    page = client.get("/status").text
    assert "Waiting to leave: 3 things, 9 kB" in page
    assert "opinions and features may leave" in page


def test_a_node_at_its_limit_says_so_on_every_page(client: TestClient, edge: Edge) -> None:
    edge.crew.fault = "encoder-untrusted"
    for path in ("/", "/status"):
        assert "No slide is read: its encoder is not what its card says" in client.get(path).text


def test_first_page_opens_the_first_list_that_holds_something(client: TestClient, edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "opinion", opinion([finding(labels=("no",))]))
    assert "a person decides" in client.get("/").text
    assert "Nothing is under way" in client.get("/?show=open").text


def test_unknown_address_is_a_page_too(client: TestClient) -> None:
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert "This is not here" in answer.text


def test_port_that_is_taken_is_said_with_what_to_do() -> None:
    with listen("127.0.0.1", 0, settings="[web] host and port in edge.toml") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WrongUseError, match=rf"port {port}: cannot be listened on .*\[web\] host and port"):
            listen("127.0.0.1", port, settings="[web] host and port in edge.toml")
