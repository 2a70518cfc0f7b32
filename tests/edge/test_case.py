"""The accession number in a file's name becomes a pseudonym; the number itself is in nothing that leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import pytest

from slideway.bundles.read import read_bundle
from slideway.core.errors import WrongUseError
from slideway.core.pseudonym import is_pseudonym
from slideway.edge.app import Edge
from slideway.edge.consult import ask_specialist
from slideway.edge.settings import parse_settings
from slideway.registry.pseudonym import load_pseudonym_secret, make_pseudonym
from slideway.store.schema import canonical_json

from .conftest import TENANT, Site
from .test_kill import change

ACCESSION = "S26-0041723"
PATTERN = r"'^(?P<case>S\d\d-\d+)[ _]'"


def make(make_site: Callable[..., Site], pattern: str = PATTERN, **more: object) -> Site:
    site = make_site(**more)
    change(site, "[reading]", f"[intake]\ncase_pattern = {pattern}\n[reading]")
    return site


def take_in(edge: Edge) -> list[str]:
    edge.watcher.quiet_seconds = 0
    return edge.intake.run_once(has_room=lambda: True)


def forms_of(word: str) -> list[bytes]:
    """A word in every way that it might have been copied, hashed or encoded; lower case."""
    forms = [word.encode(code) for code in ("ascii", "utf-16-le", "utf-16-be")]
    forms += [word.encode().hex().encode(), word[::-1].encode(), word.replace("-", "").encode()]
    for kind in ("md5", "sha1", "sha256"):
        digest = hashlib.new(kind, word.encode())
        forms += [digest.digest(), digest.hexdigest().encode()]
    return [form.lower() for form in forms]


def holds(content: bytes, word: str = ACCESSION) -> bool:
    return any(form in content.lower() for form in forms_of(word))


def test_the_number_becomes_the_pseudonym_of_its_case_and_leaves_in_nothing(
    make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make(make_site)
    site.put(tiny_slides[0], f"{ACCESSION}_A1 HE.tif")
    edge = site.open()
    node = edge.node
    edge.chores.begin()
    (slide,) = take_in(edge)
    assert edge.crew.run_once()
    with node.store.transaction(TENANT) as work:
        ask_specialist(work, node, slide, organ="lung", question="What?")
    edge.chores.run_once()
    pseudonym = make_pseudonym(load_pseudonym_secret(node.places.keys), ACCESSION)
    with node.store.reading(TENANT) as work:
        record = work.slides.get(slide)
        assert record.state.value == "encoded"
        assert record.case_id == pseudonym
        case = work.cases.find_by_accession(ACCESSION)  # the desk here will look for it
        assert case is not None
        assert case.case_id == pseudonym
        rows = canonical_json([[row.key, row.payload, row.reason] for row in work.outbox.find_all()]).encode()
        audit = canonical_json([[entry.subject, dict(entry.details)] for entry in work.audit.entries()]).encode()
    (file,) = node.places.outgoing.iterdir()
    bundle = read_bundle(file, key=site.cloud.receiving)
    assert bundle.summary.case == pseudonym
    assert is_pseudonym(pseudonym)
    assert holds(str(next(site.scans.iterdir())).encode())  # the search finds it where it is
    unpacked = [bytes(imagecodecs.zstd_decode(bundle.contents[name])) for name in ("summary", "opinion")]
    assert pseudonym.encode() in unpacked[0]
    for content in [rows, audit, file.read_bytes(), *bundle.contents.values(), *unpacked]:
        assert not holds(content)
    node.store.close()


def test_slides_of_one_case_share_a_pseudonym_and_another_hospitals_is_different(
    make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    found = []
    for name in ("one", "two"):
        site = make(make_site, name=name)
        for number, slide in enumerate(tiny_slides[:2]):
            site.put(slide, f"{ACCESSION}_{number}.tif")
        site.put(tiny_slides[2], "without.tif")
        edge = site.open()
        take_in(edge)
        with edge.node.store.reading(TENANT) as work:
            found.append({slide.case_id for slide in work.slides.find_all()})
        edge.node.store.close()
    assert all(len(cases) == 2 and None in cases for cases in found)
    assert len(found[0] | found[1]) == 3


def test_slide_that_comes_again_under_another_number_keeps_its_first_case(
    make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make(make_site)
    site.put(tiny_slides[0], "no number.tif")
    edge = site.open()
    (slide,) = take_in(edge)
    for number in (1, 2):
        site.put(tiny_slides[0], f"S26-{number}_a.tif")
        assert take_in(edge) == [slide]
    with edge.node.store.reading(TENANT) as work:
        case = work.cases.find_by_accession("S26-1")
        assert case is not None
        assert work.slides.get(slide).case_id == case.case_id
        assert [entry.action for entry in work.audit.entries()][-1] == "case-differs"
    edge.node.store.close()


def test_a_number_that_is_empty_or_too_long_is_none(make_site: Callable[..., Site], tiny_slides: list[Path]) -> None:
    site = make(make_site, r"'^(?P<case>\w*)-'")
    site.put(tiny_slides[0], "-a.tif")
    site.put(tiny_slides[1], "9" * 65 + "-a.tif")
    edge = site.open()
    assert len(take_in(edge)) == 2
    with edge.node.store.reading(TENANT) as work:
        assert {slide.case_id for slide in work.slides.find_all()} == {None}
    edge.node.store.close()


@pytest.mark.parametrize(("pattern", "words"), [("(?P<number>x)", "no group `case`"), ("(", "no regular expression")])
def test_pattern_that_names_no_case_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(WrongUseError, match=words):
        parse_settings(f"[intake]\ncase_pattern = '{pattern}'", Path("/x"))


def test_damaged_secret_is_said_at_the_start(make_site: Callable[..., Site]) -> None:
    site = make(make_site)
    secret = site.settings.places.keys / "pseudonym-secret"
    secret.write_bytes(b"short")
    secret.chmod(0o600)
    with pytest.raises(WrongUseError, match="damaged"):
        site.open()
    secret.unlink()
    site.open().node.store.close()
