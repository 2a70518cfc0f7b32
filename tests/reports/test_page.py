import base64
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from slideway.core.opinion import Answer, Evidence, Finding, Kind, KnownCase, TaskQuestion
from slideway.core.slide import Resolution, ResolutionSource
from slideway.core.tissue import QualityGrade, Reason, Verdict
from slideway.reports import FocusSummary, ReportContent, ShownTile, SlideMaps, render_report
from slideway.reports.content import ShownOpinion
from slideway.reports.page import LARGEST_PAGE_BYTES

VOID = {"meta", "img", "br", "hr", "link", "input", "rect", "path"}


class Outline(HTMLParser):
    """Every tag with its attributes, the visible text, and a check that tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.fixture(scope="module")
def page(content: ReportContent) -> str:
    return render_report(content)


def test_every_part_appears(page: str) -> None:
    text = " ".join(outline(page).text.split())
    for part in (
        "slide.svs",
        "ed92d5a9f2e8",
        "Readable with limits",
        "4.0 % of the tiles are blurred.",
        "(blurred)",
        "Tissue area",
        "of the scanned area",
        "stated by the file: aperio.MPP",
        "Scan Co 7",
        "1.9 MB",
        "Group 8",
        "typical",
        "reference-one",
        "Focus",
        "Small net",
        "small-net",
        "3f" * 32,
        "BSD-3-Clause",
        "Photographs.",
        "Never saw tissue.",
        "12.3 s",
        "81.0 kB",
        "4.2 %",
        "The scanner profile is new.",
        "2026-01-02 03:04 UTC",
        "Slideway 9.9.9",
        "What this is and is not",
        "It is no diagnosis",
        "Nothing in it has been clinically validated.",
        "Groups carry no names",
    ):
        assert part in text, part


def test_the_page_is_well_formed_and_its_anchors_meet(page: str) -> None:
    parsed = outline(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in parsed.of("a")} <= {f"#{i}" for i in ids}
    labels = [attributes["aria-labelledby"] for _, attributes in parsed.tags if "aria-labelledby" in attributes]
    assert set(labels) <= set(ids)
    assert page.startswith("<!DOCTYPE html>")
    assert parsed.of("html") == [{"lang": "en"}]


def test_the_same_content_gives_the_same_page(content: ReportContent, page: str) -> None:
    assert render_report(content) == page


def test_the_page_fetches_nothing_and_runs_nothing(page: str) -> None:
    parsed = outline(page)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in parsed.style
    assert "@import" not in parsed.style
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in parsed.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in parsed.of("img"))


def test_the_security_policy_allows_this_style_sheet_and_nothing_else(page: str) -> None:
    parsed = outline(page)
    policy = next(m["content"] for m in parsed.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(parsed.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    # The policy would block a style attribute silently.
    assert not [tag for tag, attributes in parsed.tags if "style" in attributes]


HOSTILE = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>&amp;</style>{{ 7*7 }}'


def test_hostile_texts_do_no_harm_anywhere(content: ReportContent, maps: SlideMaps) -> None:
    assert content.encoder is not None
    assert maps.novelty is not None
    hostile = replace(
        content,
        slide=replace(
            content.slide, name=HOSTILE, vendor=HOSTILE, reader=HOSTILE, scanner=HOSTILE, identifiers=(HOSTILE,)
        ),
        slide_sha256='"; } body { background: url(http://evil) } </style><script>',
        quality=QualityGrade(Verdict.LIMITED, (Reason(HOSTILE, HOSTILE),)),
        maps=replace(
            maps,
            novelty=replace(maps.novelty, reference=HOSTILE),
            resolution=Resolution(0.5, ResolutionSource.ESTIMATED, HOSTILE),
        ),
        encoder=replace(
            content.encoder, encoder_id=HOSTILE, title=HOSTILE, fingerprint=HOSTILE, licence=HOSTILE, limits=(HOSTILE,)
        ),
        seconds_by_step={HOSTILE: 1.0},
        bytes_by_output={HOSTILE: 1},
        notes=(HOSTILE,),
        slideway_version=HOSTILE,
    )
    page = render_report(hostile)
    parsed, calm = outline(page), outline(render_report(content))
    assert "<script" not in page
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in calm.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all(str(image["src"]).startswith("data:") for image in parsed.of("img"))
    assert "evil" not in parsed.style
    assert parsed.text.count(HOSTILE) >= 12


@pytest.mark.parametrize("name", ["Größe ÄÖÜ ß.svs", "张三 胃活检.svs", "\u202egnp.exe", "شريحة.svs"])
def test_names_of_any_script_stand_as_they_are_and_isolated(content: ReportContent, name: str) -> None:
    page = render_report(replace(content, slide=replace(content.slide, name=name)))
    assert f"<bdi>{name}</bdi>" in page


def test_control_signs_and_broken_bytes_of_a_name_are_replaced(content: ReportContent) -> None:
    page = render_report(replace(content, slide=replace(content.slide, name="a\x00b\x1bc\udcffd.svs")))
    assert "<bdi>a\ufffdb\ufffdc?d.svs</bdi>" in page
    assert page.encode("utf-8")


def test_no_tissue_is_an_answer(empty_maps: SlideMaps, make_content: Callable[..., ReportContent]) -> None:
    text = outline(render_report(make_content(empty_maps))).text
    assert "No tissue found" in text
    assert "No tissue was found." in text
    assert "so there are no groups" in text
    assert "so no encoder was used" in text
    assert "It is no diagnosis" in text


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_word_and_a_sign(content: ReportContent, verdict: Verdict) -> None:
    page = render_report(replace(content, quality=QualityGrade(verdict)))
    assert re.search(
        r'<span class="badge (good|look|none)"><span aria-hidden="true">.</span> [A-Z][a-z ]+</span>', page
    )


@pytest.mark.parametrize("source", list(ResolutionSource))
def test_the_source_of_the_resolution_is_said_and_an_estimate_marked(
    make_maps: Callable[..., SlideMaps], make_content: Callable[..., ReportContent], source: ResolutionSource
) -> None:
    text = outline(render_report(make_content(make_maps(source=source)))).text
    is_estimated = source is ResolutionSource.ESTIMATED
    assert ("ESTIMATED resolution." in text) is is_estimated
    assert (text.count("≈") >= 4) is is_estimated


def test_without_reference_set_the_page_says_so(content: ReportContent) -> None:
    page = render_report(replace(content, maps=replace(content.maps, novelty=None), novel_tiles=()))
    assert "novelty was not measured" in page


def test_every_picture_has_words_for_those_who_cannot_see_it(page: str) -> None:
    images = outline(page).of("img")
    assert len(images) > 20
    assert all(len(image["alt"] or "") > 10 for image in images)
    assert any("Novelty map" in (image["alt"] or "") for image in images)


def test_headings_descend_without_a_gap(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in outline(page).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_pictures_open_and_are_as_large_as_the_page_says(page: str) -> None:
    for image in outline(page).of("img"):
        pixels = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",")[1])))
        assert pixels.size == (int(image["width"] or 0), int(image["height"] or 0))


def test_the_page_stays_below_five_megabytes_whatever_is_shown(
    make_maps: Callable[..., SlideMaps], make_content: Callable[..., ReportContent]
) -> None:
    rng = np.random.default_rng(0)
    maps = make_maps(1400, 1100, groups=40)
    noise = replace(maps, thumbnail=rng.integers(0, 255, maps.thumbnail.shape, np.uint8))
    tiles = tuple(ShownTile(rng.integers(0, 255, (512, 512, 3), np.uint8), i, 0, 0) for i in range(8))
    worst = replace(make_content(noise), group_tiles=(tiles,) * 40, novel_tiles=tiles * 4)
    assert len(render_report(worst).encode()) < LARGEST_PAGE_BYTES


@pytest.mark.parametrize(("width_px", "height_px"), [(2500, 190), (190, 2500), (1, 1), (1, 700), (700, 1)])
def test_every_shape_of_slide_gives_a_page(
    make_maps: Callable[..., SlideMaps], make_content: Callable[..., ReportContent], width_px: int, height_px: int
) -> None:
    assert outline(render_report(make_content(make_maps(width_px, height_px)))).of("img")


def test_tiles_whose_focus_cannot_be_told_are_counted_apart(content: ReportContent) -> None:
    grid = content.maps.grid
    sharpness = np.full(len(grid), 18.0, np.float32)
    sharpness[:3] = np.nan
    text = outline(render_report(replace(content, focus=FocusSummary(grid, sharpness, 9.0)))).text
    assert "3 hold too little contrast to tell." in text
    assert "2.0 times as sharp" in text


Voice = Callable[..., ShownOpinion]
OFF = "Neoplastic? (slideway-oral): off, not better than its baseline"


@pytest.fixture(scope="module")
def spoken(content: ReportContent, make_opinion: Voice, make_attention: Callable[..., SlideMaps]) -> ReportContent:
    maps = make_attention(content.maps)
    return replace(content, maps=maps, opinions=(make_opinion(tiles=2),), heads_off=(OFF,))


def test_findings_say_all_that_a_doctor_needs_to_weigh_them(spoken: ReportContent) -> None:
    text = " ".join(outline(render_report(spoken).replace("><", "> <")).text.split())
    for part in (
        "Research opinions, no diagnosis.",
        "Starter of atlas version 0.3.1 (slideway-atlas)",
        "A research starter, no diagnosis. Judged on 51 cases it had not seen.",
        "This slide is stranger than 92 % of the cases it learnt from.",
        "● Answer: yes",
        "▲ Refer to an expert",
        "◐ One of a set: duodenum or colon",
        "Off by default: shown because it was asked for.",
        "It holds only if the answer to “Neoplastic?” is yes.",
        "yes 0.83",
        "liver 0.03",
        "Unlike the cases it learnt from. (unlike)",
        "Neither answer is ruled out. (undecided)",
        "Speak for “yes”, most telling first",
        "Speak against “no”, most telling first",
        "case-0017: no cosine 0.91",
        "case-0008: no label cosine 0.84",
        "What would change the answer Fewer tiles.",
        "Learnt from one atlas.",
        "Installed, but not asked",
        OFF,
        "A finding of “no” does not exclude disease",
        "It does not say where cancer is, nor that there is none.",
    ):
        assert part in text, part


def test_findings_stand_before_the_maps_and_the_page_stays_well_formed(spoken: ReportContent) -> None:
    page = render_report(spoken)
    parsed = outline(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ids.index("findings") < ids.index("maps")
    assert {a["href"] for a in parsed.of("a")} <= {f"#{i}" for i in ids}
    labels = [attributes["aria-labelledby"] for _, attributes in parsed.tags if "aria-labelledby" in attributes]
    assert set(labels) <= set(ids)
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert not [tag for tag, attributes in parsed.tags if "style" in attributes]
    assert not {"script", "link", "iframe", "form", "details"} & {tag for tag, _ in parsed.tags}
    assert any((image["alt"] or "").startswith("Attention map of") for image in parsed.of("img"))
    assert render_report(spoken) == page


def test_bars_are_as_long_as_their_numbers_say(spoken: ReportContent) -> None:
    chances = render_report(spoken).split('<table class="chances">')[1].split("</table>")[0]
    assert re.findall(r'<rect width="([0-9.]+)" height="8"', chances) == ["83.0", "17.0"]
    assert re.findall(r"<tr( class=\"named\")?><th", chances) == [' class="named"', ""]


def test_what_is_off_by_default_is_marked_wherever_it_stands(spoken: ReportContent) -> None:
    page = render_report(spoken)
    assert page.count('class="badge ai off"') == 2  # in the list of answers and beside its evidence
    assert page.count("off by default") + page.count("Off by default") == 2


def test_without_heads_there_is_no_section_of_findings(page: str) -> None:
    assert 'id="findings"' not in page
    assert "research heads" not in page


def test_when_no_head_spoke_the_page_says_so_and_which_were_not_asked(content: ReportContent) -> None:
    text = " ".join(outline(render_report(replace(content, heads_off=(OFF,)))).text.split())
    assert "No head spoke" in text
    assert "That says nothing about the tissue." in text
    assert OFF in text
    assert "All answers" not in text


def test_a_slide_that_no_head_could_read_has_its_answer(content: ReportContent, make_opinion: Voice) -> None:
    question = TaskQuestion("met", "Metastasis?", Kind.BINARY, ("no", "yes"))
    unread = Finding(question, Answer.NOT_READABLE, (), {}, (Reason("few", "Only 3 tiles were read."),), in_force=True)
    shown = make_opinion((unread,))
    shown = replace(shown, opinion=replace(shown.opinion, strangeness=None))
    page = render_report(replace(content, opinions=(shown,)))
    text = " ".join(outline(page).text.split())
    assert "○ Not readable" in text
    assert "Only 3 tiles were read." in text
    assert "stranger" not in text
    assert "Calibrated probability" not in text


def test_hostile_heads_do_no_harm_anywhere(spoken: ReportContent, make_opinion: Voice) -> None:
    question = TaskQuestion(HOSTILE, HOSTILE, Kind.CLASSES, (HOSTILE, "other"))
    finding = Finding(
        question,
        Answer.SET,
        (HOSTILE, "other"),
        {HOSTILE: 0.6, "other": 0.4},
        (Reason(HOSTILE, HOSTILE),),
        Evidence((), (), (KnownCase(HOSTILE, HOSTILE, 0.5),), HOSTILE),
    )
    shown = make_opinion((finding,), tiles=1)
    shown = replace(
        shown,
        opinion=replace(
            shown.opinion,
            head_id=HOSTILE,
            head_title=HOSTILE,
            head_version=HOSTILE,
            limits=(HOSTILE,),
            evidence_words=HOSTILE,
        ),
    )
    hostile = replace(
        spoken, opinions=(shown,), heads_off=(HOSTILE,), maps=replace(spoken.maps, attention_title=HOSTILE)
    )
    page = render_report(hostile)
    parsed, calm = outline(page), outline(render_report(spoken))
    assert "<script" not in page
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in calm.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all(str(image["src"]).startswith("data:") for image in parsed.of("img"))
    assert parsed.text.count(HOSTILE) >= 14


def test_the_page_stays_small_with_twelve_findings_and_shows_tiles_of_each(
    make_maps: Callable[..., SlideMaps],
    make_content: Callable[..., ReportContent],
    make_attention: Callable[..., SlideMaps],
    make_opinion: Voice,
) -> None:
    rng = np.random.default_rng(0)
    maps = make_attention(make_maps(700, 550, groups=12))
    noise = replace(maps, thumbnail=rng.integers(0, 255, maps.thumbnail.shape, np.uint8))
    tiles = tuple(ShownTile(rng.integers(0, 255, (224, 224, 3), np.uint8), i, 0, 0) for i in range(12))
    opinions = tuple(make_opinion(head=f"head {i}", tiles=8) for i in range(3))
    worst = replace(make_content(noise), group_tiles=(tiles,) * 12, novel_tiles=tiles, opinions=opinions)
    page = render_report(worst)
    assert len(page.encode()) < LARGEST_PAGE_BYTES
    assert page.count('class="finding"') == page.count("Tiles that speak for") == 12
    assert page.count('<figure id="finding-2-3-against-') == 3
