"""The entry point of the containers: one job from /input to /output, or a server that runs any number of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pantherseg.case import run_case
from pantherseg.errors import PantherSegError
from pantherseg.grand_challenge.job import find_job
from pantherseg.logs import say_error, show_log
from pantherseg.models.find import choose_root
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import load_recipe
from pantherseg.session import Session

INPUT, OUTPUT, MODEL = Path("/input"), Path("/output"), Path("/opt/ml/model")
# Where the platform sends its requests.
HOST, PORT = "0.0.0.0", 4743
MAX_PORT = 65535


def main(recipe: Path, arguments: Sequence[str] | None = None) -> int:
    """Run one job, or serve jobs with `--serve`, and return the exit code.

    It is 0 with a valid mask, or where a server was asked to end; else 1 with the reason as stderr's last line.
    """
    options = _parser().parse_args(arguments)
    show_log()
    try:
        settings = load_recipe(recipe)
        session = Session(settings, options.model or choose_root(MODEL, DEMO_WEIGHTS), many_cases=options.serve)
        if options.serve:
            _serve(session, options)
        else:
            source, output = find_job(options.input, options.output, settings.sockets)
            run_case(source, session, output)
    except Exception as error:
        # The platform shows only the last line; a traceback before it is for developers.
        say_error(error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="One volume in, one tumour mask out. Not for clinical use.")
    parser.add_argument("--input", type=Path, default=INPUT, metavar="DIR", help="job folder (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="where the mask goes (%(default)s)")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help=f"models ({MODEL} if it holds any file, else the demo weights)"
    )
    parser.add_argument(
        "--serve", action="store_true", help="load the models once, then run a job for each POST /invoke"
    )
    parser.add_argument("--host", default=HOST, help="address to serve on (%(default)s)")
    parser.add_argument("--port", type=_port, default=PORT, help="port to serve on (%(default)s; 0: any that is free)")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {MAX_PORT}, found {text}")
    return int(text)


def _serve(session: Session, options: argparse.Namespace) -> None:
    try:
        from pantherseg.grand_challenge.server import serve  # a single job needs no web server
    except ImportError as error:
        expected, hint = "the packages starlette and uvicorn", "pip install 'pantherseg[serve]'"
        raise PantherSegError("--serve", expected=expected, found=str(error), hint=hint) from error
    serve(session, options.input, options.output, host=options.host, port=options.port)
