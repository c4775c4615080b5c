"""The published claims on phantoms: `python -m bench.study cascade|student|mixed|metric|rescue|tables`.

Runs the repetitions of a question, writes bench/results/study-<question>.json and the tables of docs/experiments.md.
What is finished is kept in the work folder: the same command goes on, and other questions use the same networks.
`tables` writes the tables of all results again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.processes import machine
from bench.study.analysis import analysed, insert, tables
from bench.study.design import PILOT, SIZES
from bench.study.questions import QUESTIONS, measured
from pantherseg.evaluation import bootstrap
from pantherseg.files import write_text
from pantherseg.logs import show_log
from pantherseg.model_sources.nnunet import read_json

RESULTS = Path(__file__).parents[1] / "results"
# With fewer, nothing is kept.
FEWEST = 5


def run(question: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run the repetitions of a question, as many beside each other as there are jobs, and return the result."""
    cores = len(os.sched_getaffinity(0))
    jobs = min(options.jobs or (cores if options.device == "cpu" else 1), options.repeats)
    # Each process has its share of the cores; compiling the networks takes longer than they run.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    os.environ.setdefault("nnUNet_compile", "f")
    numbers = range(first := PILOT if options.pilot else 0, first + options.repeats)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        arguments = (options.work.resolve(), options.size)
        waiting = [pool.submit(measured, question, *arguments, one, options.device) for one in numbers]
        repetitions = [one.result() for one in waiting]
    return {
        "question": question,
        "size": options.size,
        "device": options.device,
        "machine": machine(),
        "intervals": {**bootstrap.settings(), "method": "percentile bootstrap over repetitions, and Student's t"},
        "differences": analysed(question, repetitions),
        "repetitions": repetitions,
    }


def _count(text: str) -> int:
    """Return a number of repetitions or jobs; from PILOT on, repetitions are those of pilots."""
    number = int(text)
    if not 1 <= number <= PILOT:
        raise argparse.ArgumentTypeError(f"expected 1 to {PILOT}, found {number}")
    return number


def main() -> None:
    """Run a question, or write the tables of all results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=[*QUESTIONS, "tables"])
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--repeats", type=_count, default=FEWEST, help="fewer than 5 keep no result (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--jobs", type=_count, help="repetitions beside each other; by default one for each core, or one"
    )
    parser.add_argument("--pilot", action="store_true", help="use other phantoms, print the tables and keep no result")
    parser.add_argument("--work", type=Path, default=Path("study"), help="folder in which everything is kept")
    options = parser.parse_args()
    show_log()
    if options.question != "tables":
        result = run(options.question, options)
        print(tables(options.question, result))
        if options.pilot or options.size == "smoke" or options.repeats < FEWEST:
            return
        write_text(RESULTS / f"study-{options.question}.json", json.dumps(result, indent=2) + "\n")
    for question in QUESTIONS:
        if (path := RESULTS / f"study-{question}.json").is_file():
            insert(question, tables(question, read_json(path)))


if __name__ == "__main__":
    main()
