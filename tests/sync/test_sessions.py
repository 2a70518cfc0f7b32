"""Tokens: what one process of a cloud gave out, another takes, though their clocks differ a little."""

from __future__ import annotations

import pytest

from slideway.core.errors import LineRefusedError
from slideway.sync.identity import sign_challenge
from slideway.sync.sessions import TOKEN_SECONDS, Sessions

from .conftest import NODE, TENANT, Cloud

NOW = 2_000_000_000.0


@pytest.mark.parametrize("ahead_seconds", [-90, 0, 90])
def test_a_token_holds_at_another_process_whose_clock_is_a_little_off(cloud: Cloud, ahead_seconds: float) -> None:
    giving = Sessions(cloud.store, secret=b"s" * 32, clock=lambda: NOW + ahead_seconds)
    taking = Sessions(cloud.store, secret=b"s" * 32, clock=lambda: NOW)
    challenge = giving.begin(TENANT, NODE)
    token = giving.prove(challenge.session, sign_challenge(cloud.node_keys.signing, challenge.challenge)).token
    assert taking.find_sender(f"Bearer {token}") == cloud.sender
    later = Sessions(cloud.store, secret=b"s" * 32, clock=lambda: NOW + ahead_seconds + TOKEN_SECONDS + 1)
    with pytest.raises(LineRefusedError, match="not a valid"):
        later.find_sender(f"Bearer {token}")
