"""The entry point of the containers: one job, from /input to /output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pantherseg.case import CaseOutput, run_case
from pantherseg.grand_challenge.job import find_input, output_path
from pantherseg.logs import say_error, show_log
from pantherseg.models.find import choose_root
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import load_recipe
from pantherseg.session import Session

INPUT, OUTPUT, MODEL = Path("/input"), Path("/output"), Path("/opt/ml/model")
REPORT = "results.json"


def main(recipe: Path, arguments: Sequence[str] | None = None) -> int:
    """Run one job and return the exit code: 0 with a valid mask, else 1 with the reason as stderr's last line."""
    parser = argparse.ArgumentParser(description="One volume in, one tumour mask out. Not for clinical use.")
    parser.add_argument("--input", type=Path, default=INPUT, metavar="DIR", help="job folder (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="where the mask goes (%(default)s)")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help=f"models ({MODEL} if it holds any file, else the demo weights)"
    )
    options = parser.parse_args(arguments)
    show_log()
    try:
        run_job(recipe, options.input, options.output, model=options.model)
    except Exception as error:
        # The platform shows only the last line; a traceback before it is for developers.
        say_error(error)
        return 1
    return 0


def run_job(recipe_path: Path, input_folder: Path, output_folder: Path, *, model: Path | None = None) -> Path:
    """Segment the volume of a job folder, write the mask and results.json, and return the path of the mask.

    model: folder of models; without it the uploaded ones, or else the demo weights. Raises PantherSegError.
    """
    recipe = load_recipe(recipe_path)
    session = Session(recipe, model or choose_root(MODEL, DEMO_WEIGHTS))
    source = find_input(input_folder, recipe.sockets)
    output = CaseOutput(output_path(output_folder, recipe.sockets, source), output_folder / REPORT)
    return run_case(source, session, output).output.mask
