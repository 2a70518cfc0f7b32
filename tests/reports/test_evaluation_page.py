import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from slideway.reports.evaluation_page import (
    EvaluatedTask,
    EvaluationContent,
    EvaluationPlot,
    EvaluationTable,
    render_evaluation,
)
from slideway.reports.page import LARGEST_PAGE_BYTES

HOSTILE = "</title><script>alert(1)</script>\" onload='x' {{ 7*7 }} \x00"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
VOID = {"meta", "img"}


class Outline(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def make_plot(svg=SVG, title="ROC curve", width_px=520):
    return EvaluationPlot(title, svg, width_px, 400, "alternative words", "how to read it")


PLOTS = (make_plot(),)


def make_task(title="Malignant?", plots=PLOTS, **changes):
    figures = EvaluationTable(
        "Head and baselines",
        ("Method", "AUROC"),
        (("This head", "0.717 (0.550–0.849)"), ("nearest cases", "0.680 (0.513–0.817)")),
        "A note.",
        strong_row=0,
    )
    sets = EvaluationTable("Sets", ("True label", "Slides"), (("no", "33"), ("yes", "20")))
    task = EvaluatedTask(title, False, "Its bound is too low.", ("53 slides.",), (figures, sets), plots, ("2 missed.",))
    return replace(task, **changes)


def make_content(*tasks, **changes):
    content = EvaluationContent(
        title="County head",
        warnings=("Research starter, not a diagnosis.",),
        facts=(("Cases", "51", "53 slides"), ("Hospitals", "unknown", "")),
        overview=EvaluationTable("All", ("Question", "This head"), (("Malignant?", "0.717"),)),
        tasks=tasks or (make_task(),),
        settings=(("Passes", "60"),),
        limits=("51 cases only.",),
        notes=(("For", "A second look."),),
        command="slideway train malignant",
        fingerprints=(("Head", "ab" * 32),),
        program="Slideway 0.1.0",
    )
    return replace(content, **changes)


def test_page_fetches_nothing_and_its_policy_forbids_it():
    outline = Outline(render_evaluation(make_content()))
    policy = next(meta["content"] for meta in outline.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    digest = base64.b64encode(hashlib.sha256(outline.style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert not outline.of("script")
    assert not outline.of("link")
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in outline.of("img"))
    assert all("style" not in attributes for _, attributes in outline.tags)
    assert all(link["href"].startswith("#") for link in outline.of("a"))


def test_every_link_leads_to_a_part_of_the_page():
    outline = Outline(render_evaluation(make_content(make_task(), make_task("Organ?"))))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in outline.of("a")} == {"task-1", "task-2"}
    assert {label for _, a in outline.tags if (label := a.get("aria-labelledby"))} <= set(ids)


def test_plot_is_held_as_it_was_drawn_with_words_for_who_cannot_see_it():
    image = Outline(render_evaluation(make_content())).of("img")[0]
    assert base64.b64decode(image["src"].split(",")[1]).decode() == SVG
    assert (image["alt"], image["width"], image["height"]) == ("alternative words", "520", "400")


def test_broad_plots_take_the_whole_width():
    page = render_evaluation(make_content(make_task(plots=(make_plot(width_px=1080), make_plot()))))
    assert [figure.get("class") for figure in Outline(page).of("figure")] == ["broad", None]


def test_figures_stand_in_their_cells_and_the_heads_row_is_marked():
    outline = Outline(render_evaluation(make_content()))
    assert "0.717 (0.550–0.849)" in outline.text
    assert [row.get("class") for row in outline.of("tr")].count("own") == 1
    assert outline.text.index("Head and baselines") < outline.text.index("2 missed.") < outline.text.index("Sets")


@pytest.mark.parametrize(("is_in_force", "word"), [(True, "in force"), (False, "off")])
def test_whether_a_question_is_in_force_is_said_in_words(is_in_force, word):
    page = render_evaluation(make_content(make_task(is_in_force=is_in_force)))
    badges = re.findall(r'<span class="badge[^"]*"><span aria-hidden="true">.</span> ([^<]+)</span>', page)
    assert badges == [word, word]


def test_hostile_text_is_shown_and_does_nothing():
    table = EvaluationTable(HOSTILE, (HOSTILE, HOSTILE), ((HOSTILE, HOSTILE),), HOSTILE)
    plot = EvaluationPlot(HOSTILE, SVG, 520, 400, HOSTILE, HOSTILE)
    task = EvaluatedTask(HOSTILE, False, HOSTILE, (HOSTILE,), (table, table), (plot,), (HOSTILE,))
    content = EvaluationContent(
        title=HOSTILE,
        warnings=(HOSTILE,),
        facts=((HOSTILE, HOSTILE, HOSTILE),),
        overview=table,
        tasks=(task,),
        settings=((HOSTILE, HOSTILE),),
        limits=(HOSTILE,),
        notes=((HOSTILE, HOSTILE),),
        command=HOSTILE,
        fingerprints=((HOSTILE, HOSTILE),),
        program=HOSTILE,
    )
    page = render_evaluation(content)
    outline = Outline(page)
    assert not outline.of("script")
    assert not [attributes for _, attributes in outline.tags if "onload" in attributes]
    assert "{{ 7*7 }}" in outline.text
    assert "\x00" not in page
    assert outline.text.count("<script>alert(1)</script>") > 20


def test_broken_bytes_of_a_name_do_not_stop_the_page():
    page = render_evaluation(make_content(title="head \udce4", tasks=(make_task(plots=(make_plot(SVG + "\udce4"),)),)))
    assert "head ?" in page


def test_same_content_gives_the_same_page():
    assert render_evaluation(make_content()) == render_evaluation(make_content())


def test_task_without_plots_missed_or_further_tables_is_shown():
    outline = Outline(render_evaluation(make_content(make_task(plots=(), missed=(), facts=(), tables=()))))
    assert not outline.of("img")
    assert "left out" not in outline.text
    assert not [a for _, a in outline.tags if a.get("class") == "missed"]


def test_too_heavy_a_page_leaves_out_the_last_plots_and_says_so():
    heavy = make_plot("<svg>" + "x" * 1_500_000 + "</svg>")
    tasks = [make_task("First?", (heavy,)), make_task("Second?", (heavy,)), make_task("Third?", (heavy, make_plot()))]
    page = render_evaluation(make_content(*tasks))
    outline = Outline(page)
    assert len(page.encode()) < LARGEST_PAGE_BYTES
    assert len(outline.of("img")) == 2
    assert "The 2 plots of this question were left out" in outline.text
    assert outline.text.count("Head and baselines") == 3


def test_print_says_evaluation_and_names_no_slide():
    style = Outline(render_evaluation(make_content())).style
    assert "Slideway evaluation of a head" in style
    assert style.rindex("@top-right { content: none; }") > style.index('@top-right { content: "slide ')
