"""The policy file: what is not understood to the last word lets nothing leave, and the message names line and key."""

from pathlib import Path

import pytest

from slideway.bundles.policy import EXAMPLE, Level, load_policy, parse_policy, policy_path
from slideway.core.errors import PolicyError

ROOT = Path(__file__).parents[2]
RULE = """\
version = "1.0"

[receiver.county]
may_leave = "features"
reason = "Second opinion, agreed in 2026."
key = "{key}"
""".format(key="0a" * 32)


def test_example_is_a_policy_and_is_the_one_in_the_docs():
    policy = parse_policy(EXAMPLE)
    assert [(rule.name, rule.level, rule.thumbnail) for rule in policy.receivers.values()] == [
        ("county-hospital", Level.FEATURES, False),
        ("cancer-registry", Level.OPINIONS, False),
    ]
    assert (ROOT / "docs" / "examples" / "policy.toml").read_text(encoding="utf-8") == EXAMPLE


def test_a_rule_defaults_to_no_picture_and_to_encryption():
    rule = parse_policy(RULE).receivers["county"]
    assert (rule.thumbnail, rule.must_encrypt, rule.sites, rule.max_bytes) == (False, True, (), None)
    assert rule.key == "0a" * 32


def test_each_level_includes_those_before_it():
    assert [level.word for level in sorted(Level)] == ["nothing", "opinions", "features", "regions", "slide"]
    policy = parse_policy(RULE)
    for level in Level:
        if level <= Level.FEATURES:
            assert policy.require("county", level).name == "county"
        else:
            with pytest.raises(PolicyError, match='may_leave = "features", which does not let'):
                policy.require("county", level)


@pytest.mark.parametrize("level", list(Level))
def test_whoever_is_not_named_gets_nothing(level):
    with pytest.raises(PolicyError, match=r"names no receiver 'others'.*named: county.*\[receiver.others\]"):
        parse_policy(RULE).require("others", level)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"1.0"', '"2.0"', 1, "version is 2.0, this Slideway knows 1.x"),
        ('"1.0"', "1.0", 1, "version must be there as text"),
        ('version = "1.0"', "", 0, 'write version = "1.0"'),
        ("may_leave", "may_laeve", 4, "may_laeve is not known; known are may_leave"),
        ('"features"', '"everything"', 4, "may_leave must be one of nothing, opinions"),
        ('"features"', "true", 4, "may_leave must be one of"),
        ('"Second opinion, agreed in 2026."', '"yes"', 5, "reason must say in a sentence"),
        ('reason = "Second opinion, agreed in 2026."', "", 3, "reason must say in a sentence"),
        ("0a0a", "xxxx", 6, "key must be a fingerprint"),
        ("key =", "thumbnail = 1\nkey =", 6, "thumbnail must be true or false"),
        ("key =", 'must_encrypt = "no"\nkey =', 6, "must_encrypt must be true or false"),
        ("key =", 'sites = "lung"\nkey =', 6, "sites must be a list"),
        ("key =", "sites = []\nkey =", 6, "sites must be a list"),
        ("key =", "max_bytes = 0\nkey =", 6, "max_bytes must be a whole number"),
        ("key =", "max_bytes = true\nkey =", 6, "max_bytes must be a whole number"),
        ("[receiver.county]", "[receiver.'../county']", 3, "is no name for a receiver"),
        ("[receiver.county]", "[recipient.county]", 0, "recipient is not known"),
    ],
)
def test_a_mistake_lets_nothing_leave_and_is_named_with_line_and_key(old, new, line, words):
    text = RULE.replace(old, new, 1)
    assert text != RULE
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.toml")
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"policy.toml, line {line}:" if line else "policy.toml:")
    assert "Nothing may leave" in message
    assert caught.value.exit_code == 4


def test_a_table_that_is_none_is_named():
    for text, words in (
        ("receiver = 1", "line 2: receiver is no table"),
        ("[receiver]\ncounty = 1", "county is no table"),
    ):
        with pytest.raises(PolicyError, match=words):
            parse_policy(f'version = "1.0"\n{text}')


def test_encryption_without_a_key_and_a_picture_of_nothing_are_refused():
    with pytest.raises(PolicyError, match=r"line 3.*needs key"):
        parse_policy(RULE.replace("key =", "# key ="))
    assert parse_policy(RULE.replace("key =", "must_encrypt = false\n# key =")).receivers["county"].key == ""
    nothing = RULE.replace('"features"', '"nothing"')
    assert parse_policy(nothing).receivers["county"].level is Level.NOTHING
    with pytest.raises(PolicyError, match='contradicts may_leave = "nothing"'):
        parse_policy(nothing.replace("key =", "thumbnail = true\nkey ="))


def test_a_mistake_in_the_second_table_is_not_blamed_on_the_first():
    text = RULE + RULE.split("\n", 2)[2].replace("county", "registry").replace('"features"', '"all"')
    with pytest.raises(PolicyError, match=r"line 8: \[receiver.registry\] may_leave"):
        parse_policy(text)


def test_a_file_that_is_not_toml_not_text_or_far_too_large_lets_nothing_leave(tmp_path):
    for content, words in ((b"version = ", "not TOML"), (b"\xff\xfe", "not UTF-8"), (b"#" * 1_000_001, "larger than")):
        file = tmp_path / "policy.toml"
        file.write_bytes(content)
        with pytest.raises(PolicyError, match=words):
            load_policy(file)
    file.write_bytes(b"\xef\xbb\xbf" + RULE.encode())  # as an editor on Windows saves it
    assert "county" in load_policy(file).receivers


def test_without_a_file_nothing_leaves_and_the_message_shows_how_to_write_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDEWAY_POLICY", str(tmp_path / "mine.toml"))
    assert policy_path() == tmp_path / "mine.toml"
    with pytest.raises(PolicyError, match=r"mine\.toml: there is no policy file.*policy --example"):
        load_policy()
    (tmp_path / "mine.toml").write_text(RULE, encoding="utf-8")
    assert "county" in load_policy().receivers
    monkeypatch.delenv("SLIDEWAY_POLICY")
    assert policy_path().name == "policy.toml"


def test_a_folder_in_the_policys_place_lets_nothing_leave(tmp_path):
    with pytest.raises(PolicyError, match="nothing may leave"):
        load_policy(tmp_path)
