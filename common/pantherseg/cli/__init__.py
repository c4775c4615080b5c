"""The command line. Each command is a module of this package, imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from pantherseg import __version__
from pantherseg.logs import say_error, show_log

# The function `predict` of the module `pantherseg.cli.predict` and so on, with its line in `pantherseg --help`.
COMMANDS = {
    "predict": "Segment a volume, or every volume of a folder.",
    "cohort": "Segment thousands of volumes, on one machine or on a Ray cluster.",
    "pack": "Pack a model folder into a bundle.",
    "weights": "List, download and verify published weights.",
    "dicom": "List the series of a DICOM folder or archive.",
    "evaluate": "Score masks against reference masks.",
    "calibrate": "Calibrate models, so that reports say what Dice to expect.",
    "select": "Choose an ensemble by the challenge's metrics.",
    "check": "Check files for the platform, and recipes.",
    "sbom": "List the installed packages as CycloneDX (JSON).",
    "phantom": "Make synthetic abdominal MR volumes.",
    "data": "Import, check, split and crop data sets for training.",
    "train": "Train the stages of a training file, from data sets to bundles.",
    "report": "Show volumes and their masks as a page or a picture.",
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and prints any error of it as one line (exit code 1)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Usage errors stay with click, which prints the usage (exit code 2)."""
        show_log()  # first: importing a command opens files, which must not become a closed standard stream
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # whoever read the output has ended; click ends without a message
            raise
        except Exception as error:
            say_error(error)
            ctx.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Pancreatic-tumour masks from abdominal MR volumes. Not for clinical use."""
