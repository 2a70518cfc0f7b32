"""`slideway`: the commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import click

import slideway
from slideway.core.errors import SlidewayError

EXIT_CODES = """
\b
Exit codes:
  0    done (no-tissue and rescan are answers too)
  1    a bug in Slideway: please report it
  2    wrong use: arguments, encoder, or an output folder that cannot be written
  3    a slide or model package cannot be read; the message names the true cause
  4    a person must decide: no microns per pixel, or the policy lets nothing leave
  5    some slides of several failed
  6    this computer could not finish: disk full, download failed
  130  interrupted; nothing half-written stays, run again to go on
"""

COULD_NOT_FINISH = 6
INTERRUPTED = 130


class _Commands(click.Group):
    """Imports a command's module only when it is called, so that --help answers at once."""

    names = (
        "read",
        "info",
        "doctor",
        "demo",
        "export",
        "bundle",
        "bytes",
        "deidentify",
        "models",
        "similar",
        "cloud",
        "edge",
        "cohort",
        "train",
        "evaluate",
        "coverage",
        "second-opinion",
        "recalibrate",
        "drift",
    )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        module = __import__(f"slideway.cli.{cmd_name.replace('-', '_')}", fromlist=["command"])
        command: click.Command = module.command
        return command


@click.command(cls=_Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(slideway.__version__, prog_name="slideway")
def cli() -> None:
    """Pathology AI on an ordinary PC.

    \b
    Start here:
      slideway demo              read a small real slide and show the answer
      slideway read SLIDE        read your own slide, or a folder of slides
      slideway doctor            what this computer can do, and what to do if it is slow

    Nothing Slideway says is a diagnosis.
    """


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(standalone_mode=False)
    except SlidewayError as error:
        click.echo(f"slideway: {error}\n  ({error.code}; docs/errors.md says more)", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except OSError as error:  # a disk, share or right outside any slide's folder: the cache, an export, a listing
        place = f"{error.filename}: " if error.filename else ""
        click.echo(
            f"slideway: {place}{error.strerror or error}; choose another place or mend its rights, and run again",
            err=True,
        )
        code = COULD_NOT_FINISH
    except (KeyboardInterrupt, click.Abort):
        click.echo("slideway: interrupted; nothing half-written stays, run the same command again to go on", err=True)
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt
