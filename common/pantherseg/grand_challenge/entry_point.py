"""What a container runs: one job, from /input to /output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pantherseg.case import read_case
from pantherseg.errors import InputError
from pantherseg.files import prepare_folder
from pantherseg.grand_challenge.job import find_input, output_path
from pantherseg.logs import say_error, show_log
from pantherseg.machine.deadline import Deadline
from pantherseg.machine.memory import begin
from pantherseg.models.find import choose_root
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import load_recipe

INPUT, OUTPUT, MODEL = Path("/input"), Path("/output"), Path("/opt/ml/model")


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
        # The platform shows the last line only; the way there is for whoever reads the whole log.
        say_error(error)
        return 1
    return 0


def run_job(recipe_path: Path, input_folder: Path, output_folder: Path, *, model: Path | None = None) -> Path:
    """Segment the volume of a job folder and return the path of the mask; results.json lies in the output folder.

    Raises PantherSegError.
    """
    begin()
    recipe = load_recipe(recipe_path)
    deadline = Deadline.after(recipe.time_budget_s)
    path = find_input(input_folder, recipe.sockets)
    volume, events = read_case(path)
    # After the input is known to be good: this imports what runs networks.
    from pantherseg.pipeline import load_system, segment, write_result

    system = load_system(recipe, model or choose_root(MODEL, DEMO_WEIGHTS))
    target = output_path(output_folder, recipe.sockets, path)
    prepare_folder(target.parent)
    try:
        result = segment(volume, system, events=events, deadline=deadline)
    except InputError as error:
        raise error.at(path) from error
    about = {"input": path.name, "mask": str(target.relative_to(output_folder))}
    write_result(result, target, output_folder / "results.json", about)
    return target
