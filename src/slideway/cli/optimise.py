"""`slideway models optimise`: smaller and faster forms of an encoder, kept only while they stay equivalent."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any, Self

import click

from slideway.core.errors import WrongUseError

FORMS = ("fp16-weights", "int8-dynamic", "int8-static", "mixed")


@click.command("optimise")
@click.argument("model", metavar="ID")
@click.option("--slide", "slides", multiple=True, type=click.Path(path_type=Path), metavar="SLIDE",
              help="A slide, or a folder of slides, to take tiles from; repeatable.")  # fmt: skip
@click.option("--tiles", "pictures", type=click.Path(path_type=Path), metavar="FOLDER",
              help="A folder of pictures at the encoder's tile and pixel size instead of slides.")  # fmt: skip
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="Only this form; repeatable.")
@click.option("--count", type=click.IntRange(64, 4096), default=256, show_default=True, help="Tiles to take.")
@click.option("--mpp", type=click.FloatRange(0.05, 20), help="Microns per pixel of the slides' finest level.")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration with scanner profiles.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Put the new models here instead of among the installed ones.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Let a form take the place of an older one of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def optimise(model: str, *, forms: tuple[str, ...], out: Path | None, as_json: bool, **settings: Any) -> int:
    """Try smaller and faster forms of encoder ID on your own tiles.

    A form that is kept becomes an encoder of its own, ID-FORM: its embeddings never meet those of ID. A form that
    changes the embeddings too much for the gate is refused, and the table says why; that all are refused is an answer
    too. What holds on this processor need not hold on another: run it where the slides are read.

    \b
    Examples:
      slideway models optimise hibou-b --slide biopsy.svs --slide section.ndpi
      slideway models optimise hibou-b --slide slides/ --form int8-dynamic
      slideway models optimise hibou-b --tiles tiles/ --json
      slideway read section.ndpi --encoder hibou-b-int8-dynamic

    Needs onnx: pip install 'slideway[train]'. docs/encoders.md says what the gate asks and why.
    """
    from slideway.encoders.optimise import optimise_encoder
    from slideway.registry.store import find_encoder

    card = find_encoder(model)
    if out is None and not settings["replace"]:
        _require_free_names(card.id, forms or FORMS)
    command = shlex.join(["slideway", "models", "optimise", model, *[f"--form={form}" for form in forms]])
    with tempfile.TemporaryDirectory() as scratch:
        target = out or Path(scratch)
        with _Steps(is_silent=as_json) as tell:
            sample = _take_tiles(card.input.tile_px, card.input.mpp, tell, **_without(settings, "replace"))
            labels = sample.sources if sample.sources.any() else None
            trials = optimise_encoder(
                card, target, tiles=sample.tiles, labels=labels, forms=forms or FORMS, command=command, progress=tell
            )
        if out is None:
            _install(trials, replace=settings["replace"])
    click.echo(json.dumps(_as_json(card.id, trials), indent=2) if as_json else _in_words(card.id, trials))
    return 0


def _require_free_names(model: str, forms: tuple[str, ...]) -> None:
    """Say before the work, not after it, that a form is installed already."""
    from slideway.registry.store import list_encoders

    installed = {card.id for card in list_encoders()}
    if taken := [form for form in forms if f"{model}-{form}" in installed]:
        raise WrongUseError(
            f"{model}-{taken[0]} is installed already; leave it out with --form, or let the new one take its place "
            "with --replace"
        )


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _take_tiles(
    tile_px: int,
    tile_mpp: float,
    tell: Any,
    *,
    slides: tuple[Path, ...],
    pictures: Path | None,
    count: int,
    mpp: float | None,
    config: Path | None,
) -> Any:
    from slideway.pipeline.folder import find_slides
    from slideway.pipeline.sampling import sample_pictures, sample_slides
    from slideway.slides.resolution import load_profiles

    if bool(slides) == (pictures is not None):
        raise WrongUseError(
            "give tiles of the kind you read: slides with --slide, or a folder of pictures with --tiles"
        )
    if pictures is not None:
        return sample_pictures(pictures, tile_px=tile_px, count=count)
    found = find_slides(slides)
    if not found:
        raise WrongUseError(f"{', '.join(path.name for path in slides)}: no slide in there")
    profiles = load_profiles(config)
    return sample_slides(
        found, tile_px=tile_px, mpp=tile_mpp, count=count, slide_mpp=mpp, profiles=profiles, progress=tell
    )


def _install(trials: list[Any], *, replace: bool) -> None:
    from slideway.registry.store import install_model

    for trial in trials:
        if trial.card is not None:
            install_model(trial.card.folder, replace=replace)


class _Steps:
    """One line on standard error that says what is being done; nothing when it is not a terminal."""

    def __init__(self, *, is_silent: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, quiet=is_silent)
        self._status = self._console.status("") if self._console.is_terminal and not is_silent else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __call__(self, words: str) -> None:
        if self._status is not None:
            self._status.update(words)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _as_json(model: str, trials: list[Any]) -> dict[str, Any]:
    rows = []
    for trial in trials:
        near = trial.equivalence
        measured = None if near is None else {name: getattr(near, name) for name in near.__dataclass_fields__}
        rows.append(
            {
                "form": trial.form,
                "kept": trial.kept,
                "reason": trial.reason,
                "bytes": trial.bytes,
                "speedup": round(trial.speedup, 3),
                "tiles_per_s_per_core": round(trial.tiles_per_s, 3),
                "equivalence": measured,
                "id": trial.card.id if trial.card else None,
                "fingerprint": trial.card.fingerprint if trial.card else None,
            }
        )
    return {"encoder": model, "kept": [row["id"] for row in rows if row["kept"]], "forms": rows}


def _in_words(model: str, trials: list[Any]) -> str:
    lines = [f"{'form':14}{'MB':>8}{'speed-up':>10}{'cosine':>9}{'lowest 1%':>11}{'neighbour':>11}{'probe loss':>12}"]
    for trial in trials:
        near = trial.equivalence
        if near is None:
            lines.append(f"{trial.form:14}{'–':>8}")
        else:
            loss = "–" if near.probe_loss is None else f"{near.probe_loss:.1%}"
            lines.append(
                f"{trial.form:14}{trial.bytes / 1e6:8.1f}{trial.speedup:9.2f}x{near.cosine_median:9.4f}"
                f"{near.cosine_p01:11.4f}{near.neighbour_agreement:11.1%}{loss:>12}"
            )
        what = f"kept as {model}-{trial.form}" if trial.kept else "refused"
        lines.append(f"  {what}: {trial.reason}")
    if not any(trial.kept for trial in trials):
        lines.append(f"No form of {model} is both equivalent and better here: it stays as it is, in fp32.")
    return "\n".join(lines)
