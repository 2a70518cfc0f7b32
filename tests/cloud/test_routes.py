"""Every route, tried by everybody who must not pass; a new route without a check fails here."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest

from slideway.cloud.app import make_api
from slideway.cloud.enrolment import revoke_node
from slideway.cloud.gate import Drain

# What needs no token, and why. Whoever adds a route here says so in docs/cloud.md.
OPEN = {
    ("GET", "/openapi.json"),  # says nothing of anybody
    ("HEAD", "/openapi.json"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/v1/ca"),  # public by nature: nodes compare it with their pin
    ("POST", "/v1/enrol"),  # a one-time code stands for the token
    ("POST", "/v1/sessions"),  # a challenge for whoever asks
    ("PUT", "/v1/sessions/{session}"),  # a signature stands for the token
    ("OPTIONS", "/v1/uploads"),  # tus: what the server can do
    ("OPTIONS", "/v1/uploads/{upload_id}"),
}
OF_NODES = ("/v1/uploads", "/v1/messages")
OF_SPECIALISTS = ("/v1/consultations",)
SHA256 = "0" * 64
VALUES = {
    "tenant": "north",
    "node": "lab-1",
    "consultation": "c-1",
    "sha256": SHA256,
    "upload_id": "0" * 40,
    "session": "x",
}


def list_routes(routes) -> Iterator[tuple[str, str]]:
    """Every method and path, also of routers that were included."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from list_routes(route.effective_candidates())
        else:
            assert route.path is not None, route
            yield from ((method, route.path) for method in sorted(route.methods or ["GET"]))


def fill(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: VALUES[found[1]], path)


@pytest.fixture
def routes(house):
    app = make_api(house.cloud, role="all", drain=Drain())
    found = set(list_routes(app.routes))
    described = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert described <= found, "the walk over the routes misses some"
    assert len(found) > 20
    return sorted(found - OPEN)


def test_nobody_passes_a_route_that_is_not_theirs(house, routes):
    north, south, gone = house.enrol("north", "lab-1"), house.enrol("south", "lab-9"), house.enrol("north", "gone")
    north_token, south_token, gone_token = (f"Bearer {node.line._get_token()}" for node in (north, south, gone))
    revoke_node(house.cloud.store, "north", "gone", reason="stolen")
    house.enrol("north", "again")  # the tenant of the paths has something to lose
    specialist = house.person()["Authorization"]
    operator = house.operator["Authorization"]
    forged = base64.b64encode(b"operator:swp_wrong").decode()
    everywhere = {
        "none": "",
        "wrong": "Bearer swp_wrong",
        "basic": f"Basic {forged}",
        "junk": "Bearer \xff.\xff",
        "revoked": gone_token,
    }
    with house.client() as client:
        for method, path in routes:
            intruders = dict(everywhere)
            if path.startswith(OF_NODES):
                intruders |= {"specialist": specialist, "operator": operator}
            elif path.startswith(OF_SPECIALISTS):
                intruders |= {"operator": operator, "node": north_token, "other tenant": south_token}
            else:
                intruders |= {"specialist": specialist, "node": north_token, "other tenant": south_token}
            for who, authorization in intruders.items():
                headers = {"Authorization": authorization.encode("latin-1")} if authorization else {}
                headers["Tus-Resumable"] = "1.0.0"
                answer = client.request(method, fill(path), headers=headers)
                assert answer.status_code in (401, 403), f"{method} {path} let {who} pass: {answer.status_code}"
                if method != "HEAD":
                    assert set(answer.json()) == {"code", "message"}
                if who == "revoked" and path.startswith(OF_NODES) and method != "HEAD":
                    assert answer.json()["code"] == "node-revoked"


def test_another_tenants_node_finds_nothing_under_our_ids(house):
    north, south = house.enrol("north", "lab-1"), house.enrol("south", "lab-1")
    content = north.pack()
    upload = north.line.begin_upload(north.plan(content)).path
    token = {"Authorization": f"Bearer {south.line._get_token()}", "Tus-Resumable": "1.0.0"}
    with house.client() as client:
        for method in ("HEAD", "PATCH", "DELETE"):
            headers = token | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
            assert client.request(method, upload, headers=headers).status_code == 404
    north.send(content)
    house.work()
    assert len(north.fetch("opinion")) == 1
    assert south.fetch() == []


def test_a_specialist_finds_nothing_of_other_organs(house):
    from slideway.sync.messages import Message

    node = house.enrol("north", "lab-1")
    body = {"consultation": "c-1", "slide": SHA256, "organ": "lung", "question": "malignant?"}
    assert not node.line.send_messages([Message("m-1", "consult-request", SHA256, 0, body)]).refused
    kidney, lung = house.person("a", organs="kidney"), house.person("b", organs="lung")
    with house.client() as client:
        assert client.get("/v1/consultations", headers=kidney).json() == []
        one = "/v1/consultations/north/c-1"
        tries = [
            ("GET", ""),
            ("POST", "/taking"),
            ("DELETE", "/taking"),
            ("GET", "/thumbnail"),
            ("GET", f"/regions/{SHA256}"),
        ]
        for method, more in tries:
            assert client.request(method, one + more, headers=kidney).status_code == 404
        assert client.put(f"{one}/answer", headers=kidney, json={"text": "yes"}).status_code == 404
        assert client.get(one, headers=lung).status_code == 200
        assert client.get("/v1/consultations/south/c-1", headers=lung).status_code == 404


def test_what_a_browser_sends_by_itself_lets_people_look_and_change_nothing(house):
    token = house.operator["Authorization"].removeprefix("Bearer ")
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{token}".encode()).decode()}
    with house.client() as client:
        assert client.get("/fleet", headers=basic).status_code == 200
        assert client.post("/v1/tenants", headers=basic, json={"tenant": "east"}).status_code == 401
        assert client.post("/v1/tenants", headers=house.operator, json={"tenant": "east"}).status_code == 201


def test_tokens_are_compared_in_constant_time(house, monkeypatch):
    import hmac

    seen = []
    real = hmac.compare_digest
    monkeypatch.setattr("slideway.cloud.people.hmac.compare_digest", lambda a, b: seen.append(1) or real(a, b))
    for name in ("a", "b", "c"):
        house.person(name)
    assert house.cloud.people.find("swp_wrong") is None
    assert len(seen) == len(house.cloud.people.list_all())
