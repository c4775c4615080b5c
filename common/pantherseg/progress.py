"""Progress over the cases of a folder: a bar on a terminal, and a line of the log for each case elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

MINUTE, HOUR = 60, 3600


@contextmanager
def cases_with_progress(cases: Iterable[T], *, unit: str, total: int, failed: Sized = ()) -> Iterator[Iterator[T]]:
    """Yield an iterator over cases that shows how many are done, of how many, and how long the others may take.

    total: the number of cases; failed: those that failed so far, whose number is shown too. Log lines are written above
    the bar as long as there is one.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with tqdm(total=total, unit=unit, disable=None) as bar:
        if bar.disable:
            yield _logged(cases, unit, total, failed)
            return
        with logging_redirect_tqdm():
            yield _counted(cases, bar, failed)


def _counted(cases: Iterable[T], bar: Any, failed: Sized) -> Iterator[T]:
    for case in cases:
        yield case
        if failed:
            bar.set_postfix(failed=len(failed), refresh=False)
        bar.update()


def _logged(cases: Iterable[T], unit: str, total: int, failed: Sized) -> Iterator[T]:
    began = time.monotonic()
    for done, case in enumerate(cases, start=1):
        yield case
        left = (time.monotonic() - began) / done * (total - done)
        rest = f", about {in_words(left)} left" if done < total else ""
        lost = f", {len(failed)} failed" if failed else ""
        logger.info("%d of %d %ss done%s%s", done, total, unit, lost, rest)


def in_words(seconds: float) -> str:
    """Return a duration in the two units that matter: `40 s`, `3 min`, `2 h 05 min`."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds // HOUR:.0f} h {seconds % HOUR // MINUTE:02.0f} min"
