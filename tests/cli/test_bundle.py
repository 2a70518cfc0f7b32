"""`slideway bundle`: from a reading to what a receiver holds in hand, with clear refusals on the way."""

import json
import os

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import slideway
from slideway.bundles import read_bag, read_bundle
from slideway.bundles.policy import EXAMPLE, parse_policy
from slideway.cli.bundle import command
from slideway.core.errors import (
    LockedBundleError,
    OutputError,
    PolicyError,
    UntrustedBundleError,
    WrongUseError,
)
from slideway.registry.keys import load_signing_key, make_signing_key
from slideway.registry.receivers import make_receiving_key

CASE = "KZ2QGX7LB3MWOA5T"


@pytest.fixture(scope="module")
def answer(small_slide, tmp_path_factory):
    """A slide that was read here."""
    return slideway.read_slide(small_slide, out=tmp_path_factory.mktemp("answers"), case=CASE, site="lung").folder


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Move between the two computers: each has its own keys and models' folder."""

    def go(place):
        monkeypatch.setenv("SLIDEWAY_KEYS", str(tmp_path / place / "keys"))
        monkeypatch.setenv("SLIDEWAY_MODELS", str(tmp_path / place / "models"))

    monkeypatch.setenv("SLIDEWAY_POLICY", str(tmp_path / "policy.toml"))
    monkeypatch.setenv("COLUMNS", "400")
    go("laboratory")
    return go


def run(*arguments):
    """Run `slideway bundle`; gives what it prints, raises what it raises."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    assert done.return_value in (0, None)
    return done.output


def write_policy(tmp_path, fingerprint, *lines, may_leave="features"):
    text = f'version = "1.0"\n[receiver.county]\nmay_leave = "{may_leave}"\nreason = "Agreed in this test."\n'
    (tmp_path / "policy.toml").write_text("\n".join([text, f'key = "{fingerprint}"', *lines]), encoding="utf-8")


@pytest.fixture
def acquainted(at, tmp_path):
    """Laboratory and county know each other's keys, and the policy lets features leave."""
    at("county")
    fingerprint = json.loads(run("key", "--public", tmp_path / "county.pub", "--json"))["fingerprint"]
    at("laboratory")
    run("receivers", "add", "county", tmp_path / "county.pub")
    (tmp_path / "laboratory.pub").write_bytes(make_signing_key().public.pem)
    write_policy(tmp_path, fingerprint)
    return at


def test_from_a_reading_to_the_receivers_hands(acquainted, answer, tmp_path):
    sent = tmp_path / "sent.swb"
    report = json.loads(run("release", answer / "bundle.swb", "--to", "county", "-o", sent, "--json"))
    assert report["level"] == "features"
    assert report["n_bytes"] == sent.stat().st_size == sum(report["tier_bytes"])
    assert report["left_behind"] == ["thumbnail"]
    with pytest.raises(LockedBundleError):
        run("unpack", sent, tmp_path / "got", "--unsigned")  # not even the sender can open it

    acquainted("county")
    with pytest.raises(UntrustedBundleError, match="read out their key's fingerprint"):
        run("unpack", sent, tmp_path / "got")
    facts = json.loads(run("unpack", sent, tmp_path / "got", "--trust", tmp_path / "laboratory.pub", "--json"))
    assert facts["whole"] is True
    assert facts["signer"] == "laboratory"
    assert sorted(file.name for file in (tmp_path / "got").iterdir()) == sorted(facts["files"])
    assert set(facts["files"]) == {"summary.json", "opinion.json", "bag.safetensors"}
    summary = json.loads((tmp_path / "got" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["case"], summary["site"]) == (CASE, "lung")
    bag, original = read_bag(tmp_path / "got" / "bag.safetensors"), read_bag(answer / "bag.safetensors")
    assert (bag.grid.column_row == original.grid.column_row).all()
    assert bag.fingerprint == original.fingerprint
    assert load_file(tmp_path / "got" / "bag.safetensors")["vectors"].shape == original.vectors.shape
    with pytest.raises(WrongUseError, match="is there already"):
        run("unpack", sent, tmp_path / "got", "--trust", tmp_path / "laboratory.pub")
    assert run("unpack", sent, tmp_path / "got2", "--unsigned")


def test_a_thumbnail_arrives_as_a_picture_only_when_the_policy_says_so(acquainted, answer, tmp_path):
    with (tmp_path / "policy.toml").open("a", encoding="utf-8") as file:
        file.write("\nthumbnail = true\n")
    assert "thumbnail" in run("release", answer / "bundle.swb", "--to", "county", "-o", tmp_path / "sent.swb")
    acquainted("county")
    run("unpack", tmp_path / "sent.swb", tmp_path / "got", "--unsigned")
    assert (tmp_path / "got" / "thumbnail.webp").read_bytes()[8:12] == b"WEBP"


def test_a_bundle_that_was_cut_off_gives_what_came_and_says_so(acquainted, answer, tmp_path):
    run("release", answer / "bundle.swb", "--to", "county", "-o", tmp_path / "sent.swb")
    acquainted("county")
    whole = (tmp_path / "sent.swb").read_bytes()
    (tmp_path / "cut.swb").write_bytes(whole[:-1])
    said = run("unpack", tmp_path / "cut.swb", tmp_path / "got", "--trust", tmp_path / "laboratory.pub")
    assert "cut off on the way, missing: tiles-" in said
    summary = json.loads((tmp_path / "got" / "summary.json").read_text(encoding="utf-8"))
    assert summary["missing"]
    told = json.loads(run("explain", tmp_path / "cut.swb", "--json"))
    assert told["whole"] is False
    assert "CUT OFF" in run("explain", tmp_path / "cut.swb")


def test_nothing_half_written_stays_when_unpacking_fails(acquainted, answer, tmp_path, monkeypatch):
    def break_off(case, folder):
        (folder / "summary.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slideway.cli.bundle.write_files", break_off)
    with pytest.raises(OutputError, match="disk is full"):
        run("unpack", answer / "bundle.swb", tmp_path / "out" / "got", "--unsigned")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_release_that_is_refused_leaves_the_older_file_alone(acquainted, answer, tmp_path):
    sent = tmp_path / "sent.swb"
    run("release", answer / "bundle.swb", "--to", "county", "-o", sent)
    before = sent.read_bytes()
    write_policy(tmp_path, "0a" * 32)
    with pytest.raises(PolicyError, match="pins the key") as caught:
        run("release", answer / "bundle.swb", "--to", "county", "-o", sent)
    assert caught.value.exit_code == 4
    assert sent.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    write_policy(tmp_path, json.loads(run("receivers", "list", "--json"))["receivers"][0]["fingerprint"])
    with pytest.raises(OutputError, match="no-such-folder"):
        run("release", answer / "bundle.swb", "--to", "county", "-o", tmp_path / "no-such-folder" / "sent.swb")


def test_the_bundle_itself_is_never_overwritten(acquainted, answer, tmp_path):
    before = (answer / "bundle.swb").read_bytes()
    with pytest.raises(WrongUseError, match="is the bundle itself"):
        run("release", answer / "bundle.swb", "--to", "county", "-o", answer / "bundle.swb")
    assert (answer / "bundle.swb").read_bytes() == before
    run("release", answer / "bundle.swb", "--to", "county")
    beside = answer / "bundle-county.swb"
    assert read_bundle(answer / "bundle.swb").summary.case == CASE
    assert beside.stat().st_size > 1000
    beside.unlink()


def test_without_a_policy_nothing_leaves_and_the_message_says_how_to_write_one(at, answer, tmp_path):
    for arguments in (["release", answer / "bundle.swb", "--to", "county"], ["policy"]):
        with pytest.raises(PolicyError, match="bundle policy --example"):
            run(*arguments)
    assert load_signing_key() is None  # nothing was made on the way
    assert run("policy", "--example") == EXAMPLE
    assert parse_policy(run("policy", "--example")).receivers


def test_policy_is_shown_in_words_and_as_json(acquainted, tmp_path):
    said = run("policy")
    for words in ("whoever is not named here gets nothing", "county", "features", "Agreed in this test."):
        assert words in said
    (rule,) = json.loads(run("policy", tmp_path / "policy.toml", "--json"))["receivers"]
    assert (rule["name"], rule["level"], rule["thumbnail"]) == ("county", "features", False)
    (tmp_path / "policy.toml").write_text('version = "1.0"\n[receiver.county]\nmay_leave = "all"\n')
    with pytest.raises(PolicyError, match=r"policy\.toml, line 3: \[receiver.county\] may_leave"):
        run("policy")


def test_explain_tells_an_open_and_a_locked_bundle(acquainted, answer, tmp_path):
    said = run("explain", answer / "bundle.swb")
    for words in ("It holds", "It does not hold", "no label image", "images of the patient", "nobody signed it", CASE,
                  "none of them is a diagnosis"):  # fmt: skip
        assert words in said, words
    run("release", answer / "bundle.swb", "--to", "county", "-o", tmp_path / "sent.swb")
    said = run("explain", tmp_path / "sent.swb")
    assert CASE not in said
    assert "told by the list of parts alone" in said
    assert "(this node)" in said
    assert "no thumbnail: no picture at all" in said
    acquainted("county")
    told = json.loads(run("explain", tmp_path / "sent.swb", "--json"))
    assert told["summary"]["case"] == CASE
    assert told["signer_name"] == ""
    assert told["is_open"] is True
    assert "NOT TRUSTED HERE" in run("explain", tmp_path / "sent.swb")
    key = tmp_path / "county" / "keys" / "receiving-key.pem"
    acquainted("laboratory")
    assert CASE in run("explain", tmp_path / "sent.swb", "--key", key)


def test_explain_fits_a_narrow_terminal(at, answer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run("explain", answer / "bundle.swb").splitlines())) <= 80


@pytest.mark.skipif(os.name == "nt", reason="POSIX rights")
def test_key_is_shown_by_its_fingerprint_and_its_private_half_never(at, tmp_path):
    said = run("key", "--public", tmp_path / "mine.pub")
    private = (tmp_path / "laboratory" / "keys" / "receiving-key.pem").read_text()
    assert private.splitlines()[1] not in said + (tmp_path / "mine.pub").read_text()
    assert "PUBLIC KEY" in (tmp_path / "mine.pub").read_text()
    assert json.loads(run("key", "--json"))["fingerprint"][:8] in said
    assert make_receiving_key().private_bytes_raw().hex() not in said


def test_adding_a_receiver_says_what_to_compare_and_to_write_into_the_policy(at, tmp_path):
    assert "receivers add NAME" in run("receivers", "list")
    run("key", "--public", tmp_path / "mine.pub")
    said = run("receivers", "add", "county", tmp_path / "mine.pub")
    assert "by telephone" in said
    text = 'version = "1.0"\n' + "\n".join(line.strip() for line in said.splitlines()[2:])
    text += '\nmay_leave = "opinions"\nreason = "Agreed in this test."\n'
    assert parse_policy(text).receivers["county"].key == json.loads(run("key", "--json"))["fingerprint"]
    assert "county" in run("receivers", "list")
