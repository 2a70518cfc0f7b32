"""`slideway read`: slides in, one output folder each out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slideway.cli.progress import Terminal
from slideway.core.errors import SlidewayError, WrongUseError
from slideway.pipeline.folder import Outcome, find_slides, read_slides
from slideway.pipeline.opinions import choose_heads
from slideway.pipeline.profile import PROFILES, STANDARD
from slideway.registry.pseudonym import load_pseudonym_secret, make_pseudonym
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.slides.resolution import load_profiles

SOME_FAILED = 5


@click.command("read")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SLIDE...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-out"), show_default=True,
              help="Folder for the answers; one folder a slide.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0.05, 20), help="Microns per pixel of the finest level, e.g. 0.25.")
@click.option("--estimate-mpp", is_flag=True,
              help="If nothing states the resolution, estimate it from nuclei; every output is marked.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), help="Configuration with scanner profiles.")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, metavar="ID",
              help="Installed encoder, or a folder with a model card.")  # fmt: skip
@click.option("--engine", type=click.Choice(["onnxruntime", "openvino"]),
              help="Inference engine; default: the one `slideway doctor` found fastest here.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Cores to use; default: all.")
@click.option("--profile", type=click.Choice(PROFILES), default=STANDARD, show_default=True,
              help="How much to read: thrifty a third, standard every tile, thorough rims and blur too.")  # fmt: skip
@click.option("--export", "exports", multiple=True, type=click.Choice(["h5", "h5ad", "geojson"]),
              help="Also write the bag for TRIDENT (h5), AnnData (h5ad), QuPath (geojson); repeatable.")  # fmt: skip
@click.option("--head", "heads", multiple=True, metavar="ID",
              help="Ask this head, in force or not; repeatable. Default: all heads in force.")  # fmt: skip
@click.option("--site", default="", metavar="ID",
              help="Where the tissue comes from, e.g. lung (slideway coverage); heads of others refer.")  # fmt: skip
@click.option("--case", "accession_number", metavar="ACCESSION",
              help="Case number of these slides; only a pseudonym made of it is kept.")  # fmt: skip
@click.option("--no-heads", is_flag=True, help="Ask no head: no findings.")
@click.option("--again", is_flag=True, help="Read also what is already read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a slide, one a line.")
def command(
    slides: tuple[Path, ...],
    *,
    config: Path | None,
    encoder: str,
    accession_number: str | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Read slides: tissue, quality, embeddings, groups of like tiles, novelty, findings of heads in force.

    SLIDE is a slide file, a DICOM folder, or a folder that is searched for slides. What is already read is kept, so an
    interrupted run goes on where it stopped. Each slide gets a folder with overlay.png, report.html, result.json and
    bag.safetensors.

    On a weak PC, --profile thrifty looks the tissue over coarsely and reads what stands out, what is most cellular,
    some of each kind of tissue and a random share of the rest; the report says so. A slide that was read with another
    profile, encoder, site, case or other heads is read again.

    With --case, bundle.swb says by a pseudonym which slides are of one case; the number itself is written nowhere.

    \b
    Examples:
      slideway read biopsy.svs
      slideway read scans/ --out answers
      slideway read old-scan.tif --mpp 0.25
      slideway read scans/ --profile thrifty
      slideway read biopsy.svs --head my-head        ask a head by name, also one that is off
      slideway read biopsy.svs --case A26-00123
      slideway read biopsy.svs --json | jq .findings
    """
    if settings["mpp"] is not None and settings["estimate_mpp"]:
        raise WrongUseError("--mpp gives the resolution and --estimate-mpp asks to guess it; use one of them")
    settings["heads"] = _name_heads(settings["heads"], none=settings.pop("no_heads"))
    if accession_number is not None:
        settings["case"] = make_pseudonym(load_pseudonym_secret(), accession_number)
    card = find_encoder(encoder)
    choose_heads(card, settings["heads"])  # refuses before any slide is read
    profiles = load_profiles(config)
    found = find_slides(slides)
    if not found:
        raise WrongUseError(
            f"{', '.join(p.name for p in slides)}: no slide in there; docs/formats.md lists the formats"
        )
    outcomes = []
    with Terminal() as terminal:
        for outcome in read_slides(
            found,
            card=card,
            profiles=profiles,
            progress=terminal,
            watch=lambda path, number, count: terminal.on_slide(path.name, number, count),
            **settings,
        ):
            outcomes.append(outcome)
            say(outcome, as_json=as_json, first_tile_s=terminal.first_tile_s)
    return exit_code(outcomes)


def _name_heads(names: tuple[str, ...], *, none: bool) -> tuple[str, ...] | None:
    """Heads to ask: None for those in force."""
    if names and none:
        raise WrongUseError("--head asks a head and --no-heads asks none; use one of them")
    return () if none else names or None


def exit_code(outcomes: list[Outcome]) -> int:
    """0 when all is read; the error's own code when all failed alike; 5 when only some failed."""
    codes = {outcome.error.exit_code if outcome.error else 0 for outcome in outcomes}
    return codes.pop() if len(codes) == 1 else SOME_FAILED


def say(outcome: Outcome, *, as_json: bool, first_tile_s: float | None) -> None:
    """Print what became of one slide."""
    if as_json:
        click.echo(json.dumps(_as_json(outcome, first_tile_s), ensure_ascii=False))
    elif outcome.error is not None:
        click.echo(f"slideway: {outcome.error}\n  ({outcome.error.code}; docs/errors.md says more)", err=True)
    else:
        click.echo(_in_words(outcome))


def _as_json(outcome: Outcome, first_tile_s: float | None) -> dict[str, Any]:
    if outcome.result is None:
        error = outcome.error or SlidewayError("unknown")
        return {
            "status": outcome.status,
            "slide": {"name": outcome.path.name},
            "error": {"code": error.code, "message": str(error), "exit_code": error.exit_code},
        }
    answer = {**outcome.result, "status": outcome.status, "folder": str(outcome.folder)}
    if outcome.instead_of is not None:
        answer["instead_of"] = outcome.instead_of
    if first_tile_s is not None:
        # From the start of this process, imports and all, to the first encoded tiles of the first slide.
        answer["process_to_first_tile_s"] = round(first_tile_s, 3)
    return answer


def _in_words(outcome: Outcome) -> str:
    result, folder = outcome.result, outcome.folder
    assert result is not None
    assert folder is not None
    marks = ["already read"] if outcome.status == "kept" else []
    marks += [f"read again instead of {outcome.instead_of}"] if outcome.instead_of else []
    marks += _say_profile(result)
    marks += ["resolution ESTIMATED"] if result["estimated"] else []
    line = (
        f"{outcome.path.name}: {result['quality']['verdict']} · {result['tissue']['area_mm2']:.1f} mm² tissue · "
        f"{result['grid']['tiles']:,} tiles in {result['timing']['total_s']:.1f} s "
        f"({result['timing']['tiles_per_s']:.0f} tiles/s)"
    )
    reasons = [f"  {_say_finding(finding)}" for finding in result.get("findings", [])]
    reasons += [f"  - {reason['text']}" for reason in result["quality"]["reasons"]]
    shown = folder / "report.html"
    return "\n".join([line + "".join(f" · {mark}" for mark in marks), *reasons, f"  {shown}"])


def _say_finding(finding: dict[str, Any]) -> str:
    """One line a finding: what a person must see without opening the report."""
    off = "" if finding["in_force"] else ", off by default"
    starter = f"(research, not validated{off})"
    if finding["answer"] == "answer":
        label = finding["labels"][0]
        return f"{finding['title']} {label}, {finding['probabilities'][label]:.2f} {starter}"
    why = finding["reasons"][0]["text"]
    words = {"set": " or ".join(finding["labels"]), "refer": "refer to an expert", "not-readable": "not readable"}
    return f"{finding['title']} {words[finding['answer']]}: {why} {starter}"


def _say_profile(result: dict[str, Any]) -> list[str]:
    profile = result.get("profile", {"name": STANDARD})
    if profile["name"] == STANDARD:
        return []
    saved = profile["saved_tiles_percent"]
    return [f"{profile['name']}" + (f": {100 - saved:.0f} % of the tiles on tissue were read" if saved else "")]
