"""Headless Chromium for pages of reports: that of the system, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

# WebGL in software, which Chromium no longer uses unless it is asked to.
SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")


def chromium_path() -> str | None:
    """Return the Chromium of PANTHERSEG_CHROMIUM or of the system, None if there is none."""
    return os.environ.get("PANTHERSEG_CHROMIUM") or shutil.which("chromium")


@contextmanager
def chromium(playwright: Playwright, flags: Sequence[str] = SOFTWARE_WEBGL) -> Iterator[Browser]:
    """Start Chromium with flags, and end it. Raises RuntimeError if there is none."""
    path = chromium_path()
    if path is None:
        raise RuntimeError("Chromium is not installed: apt-get install chromium, or set PANTHERSEG_CHROMIUM")
    browser = playwright.chromium.launch(executable_path=path, args=list(flags))
    try:
        yield browser
    finally:
        browser.close()
