"""The tables of docs/parity.md and its picture, from evidence.json alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from slideway.heads.metrics import exact_interval

ROOT = Path(__file__).parents[2]
PAGE, PICTURE = ROOT / "docs/parity.md", ROOT / "docs/pictures/parity.svg"
Evidence = dict[str, Any]
# What slideway.bundles.build falls to under a budget, and what stands beside it in the picture.
DEFAULT = "steps"
LADDER = ("fp16", "int8", "steps-fine", "steps", "steps-coarse", "steps-1.0")
INK, GREY, BLUE, RED = "#222222", "#8a8a8a", "#1f5fa8", "#b3411e"


def write_report(evidence: Evidence) -> None:
    page = PAGE.read_text(encoding="utf-8")
    tables = {
        "material": say_material(evidence),
        "codecs": tabulate_codecs(evidence),
        "verdicts": tabulate_verdicts(evidence),
        "heads": tabulate_heads(evidence),
        "certainty": tabulate_certainty(evidence),
        "maps": tabulate_maps(evidence),
        "planted": tabulate_planted(evidence),
        "slides": tabulate_slides(evidence),
        "prefixes": tabulate_prefixes(evidence),
        "planted-prefixes": tabulate_planted_prefixes(evidence),
    }
    for name, table in tables.items():
        found = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not found.search(page):
            raise SystemExit(f"docs/parity.md has no place for the table {name!r}")
        page = found.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", page)
    PAGE.write_text(page, encoding="utf-8", newline="\n")
    draw(evidence, PICTURE)


def rows_of(evidence: Evidence) -> list[tuple[str, dict[str, Any]]]:
    """Ways by falling size of a whole slide's vectors."""
    return sorted(evidence["ways"].items(), key=lambda one: -one[1]["bytes"]["bytes_per_tile"])


def own_rows(evidence: Evidence) -> list[tuple[str, dict[str, Any]]]:
    """The same without those that give another's vectors."""
    return [(name, own) for name, own in rows_of(evidence) if "same_as" not in own]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def show_agreement(own: dict[str, Any]) -> str:
    """99.53 % (4 of 848; 98.80–99.87)."""
    return (
        f"{percent(1 - own['differ'] / own['decisions'])} ({own['differ']} of {own['decisions']:,} differ; "
        f"{100 * own['low']:.2f}–{100 * own['high']:.2f})"
    )


def show_range(own: list[float], factor: float = 1.0, digits: int = 4) -> str:
    value, low, high = (factor * one + 0.0 for one in own)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def show_gain(loss: list[float]) -> str:
    """-4.8 (-9.1 to -1.0), in points."""
    value, low, high = (round(-100 * one, 1) + 0.0 for one in loss)
    return f"{value:+.1f} ({high:+.1f} to {low:+.1f})"


def mark(name: str) -> str:
    return f"**{name}**" if name == DEFAULT else f"{name}" + (" †" if name == "steps-1.0" else "")


def say_material(evidence: Evidence) -> str:
    facts = evidence["facts"]
    tiles = sum(one["tiles"] for one in facts["wholes"])
    labelled = " and ".join(
        f"{n:,} of {facts['labelled_tiles'][name]:,} ({name})" for name, n in facts["tile_decisions"].items()
    )
    by = ", ".join(f"{method} {n}" for method, n in facts["decisions"].items())
    kinds = ", ".join(f"{kind} {n}" for kind, n in facts["shipped_kinds"].items())
    return (
        f"{facts['slides']} slides of {facts['cases']} cases as bags of 93 to 96 tiles; {len(facts['wholes'])} of them "
        f"also whole ({tiles:,} tiles); encoder `{facts['encoder']}`. **{facts['slide_decisions']:,} answers about "
        f"slides** ({by}), of which {facts['near_border']} were closer than 60 : 40; they come from {facts['cases']} "
        f"cases, and their variance over cases is {facts['design_effect']:.2f} times that of as many independent "
        f"answers (median over the {facts['design_effect_rests_on']} ways with ten flips or more, at least 1; "
        "the intervals of slide answers allow for it). "
        f"How far the shipped heads went: {kinds}. "
        f"Labelled tiles judged by a head that had not learnt from them: {labelled}. "
        f"{facts['plantings']} plantings ({facts['planted_tiles']:,} planted tiles) in {facts['hosts']} whole slides, "
        f"from {len(facts['donors'])} donors. Independent answers that are needed to show the "
        f"margin: {facts['needed_without_flips']:,} if none flips, {facts['needed_at_expected_flips']:,.0f} if as many "
        f"flip as are expected of `{evidence['prefix_codec']}`. "
        f"With the case as the unit, {facts['cases']} unchanged of {facts['cases']} would show "
        f"{percent(exact_interval(facts['cases'], facts['cases']).low, 1)}. "
        f"{facts['date']}, {facts['cpu_seconds']:,} s of CPU, "
        "`just bench-parity DATA --write`."
    )


def tabulate_codecs(evidence: Evidence) -> str:
    rows = []
    for name, own in rows_of(evidence):
        size = own["bytes"]
        bundle = size.get("bundle_bytes_per_tile")
        head = [mark(name), f"{size['bytes_per_tile']:.0f}", "–" if bundle is None else f"{bundle:.0f}"]
        if "same_as" in own:
            rows.append([*head, f"as {own['same_as']}", *[""] * 6])
            continue
        slides, planted = own["slides"], own["planted"]
        rows.append(
            [
                *head,
                f"{slides['cosine']['mean']:.4f}",
                show_agreement(slides["agreement"]),
                show_agreement(slides["by_tiles"]),
                show_agreement(own["tiles"]["unseen"]["agreement"]),
                f"{slides['change']['mean']:.4f} / {slides['change']['q99']:.3f} / {slides['change']['max']:.3f}",
                show_range(planted["all 0.01"]["recall_loss"], 100, 1),
                show_range(planted["all 0.002"]["recall_loss"], 100, 1),
            ]
        )
    head = [
        "way",
        "bytes a tile",
        "bundle, bytes a tile",
        "cosine",
        "slide answers as lossless (95 %)",
        "without mean-pool and nearest cases",
        "tile answers as lossless (95 %)",
        "probability moves by: mean / 99 % / most",
        "recall lost of 1 % planted, points",
        "of 0.2 % planted, points",
    ]
    return table(head, rows)


def tabulate_verdicts(evidence: Evidence) -> str:
    names = list(next(iter(evidence["ways"].values()))["verdicts"])
    rows = [
        [
            mark(name),
            *(own["verdicts"][one] for one in names),
            f"{100 * own['slides']['agreement']['drawn_low']:.2f} %",
            f"{own['slides']['agreement']['cases_differ']} of {own['slides']['agreement']['cases']}",
            f"{percent(own['slides']['expected_flips'][0])} ({percent(own['slides']['expected_flips'][2])})",
        ]
        for name, own in own_rows(evidence)
    ]
    margins = evidence["margins"]
    titles = {
        "slide answers": f"slide answers ≥ {percent(margins['agreement'], 1)}",
        "by tiles": "the same without what sees the mean tile only",
        "tile answers": f"tile answers ≥ {percent(margins['agreement'], 1)}",
        "AUROC, tiles": f"AUROC of labelled tiles (worse set), loss ≤ {margins['auroc_loss']}",
        "AUROC, slides": f"AUROC of slides, loss ≤ {margins['auroc_loss']}",
        "planted 0.01": f"1 % planted, recall loss ≤ {100 * margins['recall_loss']:.0f} points",
        "planted 0.002": f"0.2 % planted, recall loss ≤ {100 * margins['recall_loss']:.0f} points",
    }
    head = [
        "way",
        *(titles[name] for name in names),
        "slide answers, lower bound from cases drawn anew",
        "cases with a changed answer",
        "expected flips (upper bound)",
    ]
    return table(head, rows)


def tabulate_heads(evidence: Evidence) -> str:
    methods = list(evidence["facts"]["decisions"])
    rows = []
    for name, own in own_rows(evidence):
        cells = [own["slides"]["by_method"][method] for method in methods]
        shipped = own["tiles"]["shipped"]["agreement"]
        rows.append(
            [
                mark(name),
                *(f"{c['agreement']['differ']} ({c['change']['max']:.3f})" for c in cells),
                f"{shipped['differ']} of {shipped['decisions']:,} ({own['tiles']['shipped']['change']['max']:.3f})",
            ]
        )
    counts = evidence["facts"]["decisions"]
    return table(
        ["way", *(f"{method} (of {counts[method]})" for method in methods), "shipped tile heads, labelled tiles"], rows
    )


def tabulate_certainty(evidence: Evidence) -> str:
    rows = []
    for name, own in own_rows(evidence):
        slides, tiles = own["slides"], own["tiles"]["auroc_loss"]
        rows.append(
            [
                mark(name),
                show_agreement(slides["unseen_sets"]["kinds"]),
                show_agreement(slides["unseen_sets"]["sets"]),
                show_range(slides["auroc_loss"]),
                *(show_range(tiles[one]) for one in ("pcam1000", "oscc")),
            ]
        )
    lossless = evidence["ways"]["fp16"]["tiles"]["auroc_loss"]
    head = [
        "way",
        "answer, set or refer as lossless",
        "the same labels in the set",
        "AUROC lost, slides",
        f"AUROC lost, PatchCamelyon tiles (lossless {lossless['pcam1000, lossless']:.3f})",
        f"AUROC lost, oral tiles (lossless {lossless['oscc, lossless']:.3f})",
    ]
    return table(head, rows)


def tabulate_maps(evidence: Evidence) -> str:
    rows = []
    for name, own in own_rows(evidence):
        slides = own["slides"]
        right, asked = slides["recall_at_1"]
        rows.append(
            [
                mark(name),
                *(
                    f"{slides[one]['mean']:.4f} ({slides[one]['min']:.3f})"
                    for one in ("attention", "tile_scores", "novelty")
                ),
                f"{100 * slides['novel_share']['mean']:.2f} ({100 * slides['novel_share']['max']:.2f})",
                f"{slides['groups']['mean']:.3f} ({slides['groups']['min']:.2f})",
                show_agreement(slides["nearest"]),
                f"{right} of {asked}",
                show_agreement(slides["tile_calls"]).split(";")[0] + ")",
            ]
        )
    head = [
        "way",
        "attention ranks (worst slide)",
        "tile scores' ranks",
        "novelty ranks",
        "novel share moves, points (most)",
        "groups, adjusted Rand (worst)",
        "nearest slide as lossless",
        "R@1, same organ",
        "tile calls on whole slides",
    ]
    return table(head, rows)


def list_finders(evidence: Evidence) -> list[str]:
    return [key for key in evidence["ways"]["fp16"]["planted"] if not key.startswith("all ")]


def tabulate_planted(evidence: Evidence) -> str:
    base = evidence["ways"]["fp16"]["planted"]
    keys = list_finders(evidence)
    rows = [["lossless", *(percent(base[key]["recall"], 0) for key in keys)]]
    rows += [
        [mark(name), *(show_gain(own["planted"][key]["recall_loss"]) for key in keys)]
        for name, own in own_rows(evidence)
        if name != "fp16"
    ]
    return table(
        ["way", *(f"{key.rsplit(' ', 1)[0]}, {percent(float(key.rsplit(' ', 1)[1]), 1)}" for key in keys)], rows
    )


def tabulate_slides(evidence: Evidence) -> str:
    wholes = evidence["facts"]["wholes"]
    names = [name for name in LADDER if "bundle_bytes" in evidence["ways"][name]["bytes"]]
    rows = [
        [
            whole["name"],
            f"{whole['tiles']:,}",
            f"{whole['file_bytes'] / 1e6:.1f}",
            "reduced copy" if whole["is_reduced"] else "full size",
            *(
                f"{size['bundle_bytes'][i] / 1e3:.0f} ({percent(size['share_of_file'][i])})"
                for size in (evidence["ways"][name]["bytes"] for name in names)
            ),
        ]
        for i, whole in enumerate(wholes)
    ]
    return table(["slide", "tiles", "file, MB", "", *(f"{name}, kB (of the file)" for name in names)], rows)


def tabulate_prefixes(evidence: Evidence) -> str:
    rows = []
    for name, own in evidence["prefixes"].items():
        sizes, tiles = own["bytes"], [100 * n / of for n, of in zip(own["tiles"], own["of_tiles"], strict=True)]
        mean = sum(tiles) / len(tiles)
        head = [
            name,
            f"{min(sizes) / 1e3:.1f}–{max(sizes) / 1e3:.1f}",
            f"{min(tiles):.0f}–{max(tiles):.0f} %, mean {mean:.0f} %",
        ]
        if "agreement" not in own:
            rows.append([*head, "the edge's own answer, in brief; nothing can be recomputed", *[""] * 6])
            continue
        rows.append(
            [
                *head,
                show_agreement(own["agreement"]),
                f"{own['change']['mean']:.3f} / {own['change']['max']:.3f}",
                f"{own['by_tiles']['differ']} of {own['by_tiles']['decisions']}",
                f"{own['attention']['mean']:.3f} ({own['attention']['min']:.2f})",
                f"{own['groups']['mean']:.2f} ({own['groups']['min']:.2f})",
                f"{100 * own['novel_share']['mean']:.1f} ({100 * own['novel_share']['max']:.1f})",
                "{} of {}".format(*own["nearest_same"]),
            ]
        )
    head = [
        "prefix",
        "kB",
        "tiles that came",
        "slide answers as lossless (95 %)",
        "probability moves by: mean / most",
        "changed, without mean-pool and nearest cases",
        "attention ranks (worst)",
        "groups, adjusted Rand (worst)",
        "novel share moves, points (most)",
        "same nearest slide",
    ]
    return table(head, rows)


def tabulate_planted_prefixes(evidence: Evidence) -> str:
    ways = (("novelty, groups (as shipped)", "planted_prefixes"), ("attention too", "planted_prefixes_by_attention"))
    return "\n\n".join(f"Tiles ordered by {words}:\n\n{_tabulate_order(evidence[key])}" for words, key in ways)


def _tabulate_order(found: dict[str, Any]) -> str:
    prefixes = list(dict.fromkeys(key.split(" | ")[0] for key in found))
    finders = list(dict.fromkeys(key.split(" | ")[1] for key in found))
    rows = []
    for prefix in prefixes:
        came = {finder: found[f"{prefix} | {finder}"] for finder in finders}
        shares = {finder.rsplit(" ", 1)[1]: one["came"] for finder, one in came.items()}
        rows.append(
            [
                prefix,
                *(percent(one, 0) for one in shares.values()),
                *(percent(one["recall"], 0) for one in came.values()),
            ]
        )
    shares = list(dict.fromkeys(finder.rsplit(" ", 1)[1] for finder in finders))
    heads = [f"came, {percent(float(share), 1)} planted" for share in shares]
    heads += [f"{finder.rsplit(' ', 1)[0]}, {percent(float(finder.rsplit(' ', 1)[1]), 1)}" for finder in finders]
    return table(["prefix", *heads], rows)


# The picture


def draw(evidence: Evidence, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "slideway", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(2, 2, figsize=(10, 8.6), layout="constrained")
    _draw_changed(axes[0, 0], evidence)
    _draw_cosine(axes[0, 1], evidence)
    _draw_planted(axes[1, 0], evidence)
    _draw_prefixes(axes[1, 1], evidence)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _points(evidence: Evidence) -> list[tuple[str, float, dict[str, Any]]]:
    return [(name, own["bytes"]["bytes_per_tile"], own) for name, own in own_rows(evidence)]


def _finish(axis: Any, evidence: Evidence, title: str, words: str) -> None:
    """Bytes below, names above, each name as near to its point as its neighbours allow."""
    axis.set_xscale("log")
    axis.set_xticks([50, 100, 200, 500, 1000], ["50", "100", "200", "500", "1,000"])
    axis.minorticks_off()
    axis.set_xlim(40, 1150)
    axis.set_xlabel("bytes a tile, whole slides (logarithmic)")
    axis.set_ylabel(words)
    axis.set_title(title, loc="left", fontsize=9, color=INK, pad=4)
    points = sorted((x, name) for name, x, _ in _points(evidence))
    places: list[float] = []
    for x, _ in points:
        places.append(max(x, places[-1] * 1.13) if places else x)
    for (x, name), place in zip(points, places, strict=True):
        colour = BLUE if name in LADDER else GREY
        axis.axvline(x, color=colour, lw=0.3, alpha=0.5, zorder=0)
        axis.annotate(
            name.replace(", first part", ", 1st"),
            (x, 1),
            (place, 0.985),
            xycoords=axis.get_xaxis_transform(),
            rotation=90,
            ha="center",
            va="top",
            fontsize=7,
            color=colour,
            textcoords=axis.get_xaxis_transform(),
            bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )


def _draw_changed(axis: Any, evidence: Evidence) -> None:
    floor = 0.02
    kinds = (
        (0.97, BLUE, "o", "slides, all methods", lambda own: own["slides"]["agreement"]),
        (1.0, GREY, "^", "slides, without those that see the mean tile only", lambda own: own["slides"]["by_tiles"]),
        (1.03, RED, "s", "single labelled tiles", lambda own: own["tiles"]["unseen"]["agreement"]),
    )
    for i, (_, x, own) in enumerate(_points(evidence)):
        for shift, colour, marker, words, choose in kinds:
            agreement = choose(own)
            changed, low, high = (max(floor, 100 * (1 - agreement[key])) for key in ("share", "high", "low"))
            axis.errorbar(
                x * shift,
                changed,
                [[changed - low], [high - changed]],
                fmt=marker,
                color=colour,
                ms=3.5,
                lw=0.9,
                mfc=colour if agreement["differ"] else "white",
                label=None if i else words,
            )
    margin = 100 * (1 - evidence["margins"]["agreement"])
    axis.axhline(margin, color=INK, lw=0.8, ls="--")
    axis.annotate(f"margin {margin:.1f} %", (1130, margin), ha="right", va="bottom", fontsize=7)
    axis.set_yscale("log")
    axis.set_ylim(0.0025, 400)
    axis.set_yticks([0.02, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axis.legend(frameon=False, loc="lower left", fontsize=7)
    _finish(axis, evidence, "Answers that change (hollow: none did)", "% of answers, 95 % interval (logarithmic)")


def _draw_cosine(axis: Any, evidence: Evidence) -> None:
    for name, x, own in _points(evidence):
        if name != "fp16":
            lost = max(1 - own["slides"]["cosine"]["mean"], 1e-6)
            axis.plot(x, lost, "o", color=BLUE if name in LADDER else GREY, ms=4)
    axis.set_yscale("log")
    axis.set_ylim(1e-5, 3)
    _finish(
        axis,
        evidence,
        "What of a tile's direction is lost (fp16: nothing)",
        "1 − cosine, slide's mean taken off (logarithmic)",
    )


def _draw_planted(axis: Any, evidence: Evidence) -> None:
    for i, (_, x, own) in enumerate(_points(evidence)):
        for shift, colour, marker, share in ((0.98, BLUE, "o", "0.01"), (1.02, RED, "s", "0.002")):
            value, low, high = (-100 * one for one in own["planted"][f"all {share}"]["recall_loss"])
            axis.errorbar(
                x * shift,
                value,
                [[value - high], [low - value]],
                fmt=marker,
                color=colour,
                ms=3.5,
                lw=0.9,
                label=None if i else f"{100 * float(share):g} % of the tiles planted",
            )
    margin = -100 * evidence["margins"]["recall_loss"]
    axis.axhline(0, color=GREY, lw=0.6)
    axis.axhline(margin, color=INK, lw=0.8, ls="--")
    axis.annotate(f"margin {margin:.0f} points", (1130, margin), ha="right", va="top", fontsize=7)
    bottom = axis.get_ylim()[0]
    axis.set_ylim(bottom, -0.45 * bottom)
    axis.legend(frameon=False, loc="lower right", fontsize=7)
    _finish(
        axis, evidence, "Planted lesion tiles among the hottest 2 %", "points of recall against lossless, 95 % interval"
    )


def _draw_prefixes(axis: Any, evidence: Evidence) -> None:
    steps = {name: own for name, own in evidence["prefixes"].items() if "agreement" in own}
    x = [sum(own["bytes"]) / len(own["bytes"]) / 1e3 for own in steps.values()]
    agreements = [own["agreement"] for own in steps.values()]
    share = [100 * own["share"] for own in agreements]
    low = [100 * (own["share"] - own["low"]) for own in agreements]
    high = [100 * (own["high"] - own["share"]) for own in agreements]
    axis.errorbar(x, share, [low, high], fmt="o-", color=BLUE, ms=3.5, lw=0.9, label="slide answers as lossless")
    found = evidence["planted_prefixes"]
    for planted, colour, style in (("0.01", RED, "s-"), ("0.002", GREY, "^-")):
        came = [
            100
            * next(one["came"] for key, one in found.items() if key.startswith(f"{name} | ") and key.endswith(planted))
            for name in steps
        ]
        axis.plot(
            x, came, style, color=colour, ms=3.5, lw=0.9, label=f"planted tiles that came, {100 * float(planted):g} %"
        )
    for i, (name, at) in enumerate(zip(steps, x, strict=True)):
        is_last = i == len(x) - 1
        axis.annotate(name, (at, 104), ha="left" if is_last else "right" if i else "center", va="bottom", fontsize=7)
    axis.set_xscale("log")
    ticks = [one for one in (20, 50, 100, 200, 500) if 0.6 * x[0] < one < 1.5 * x[-1]]
    axis.set_xticks(ticks, [f"{one}" for one in ticks])
    axis.minorticks_off()
    axis.set_xlim(0.8 * x[0], 1.3 * x[-1])
    axis.set_ylim(0, 112)
    axis.set_xlabel("kB of the bundle that came, mean of the whole slides (logarithmic)")
    axis.set_ylabel("%")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.5))
    axis.set_title(
        f"What each prefix of the bundle gives ({evidence['prefix_codec']})", loc="left", fontsize=9, color=INK
    )
