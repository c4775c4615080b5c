"""What is installed here, as a CycloneDX list: Python's packages as Python sees them, and Debian's as dpkg does.

In an image that is everything but the code of pantherseg itself. The same contents give the same bytes: no time and
no random number is in the list. The format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pantherseg import __doc__ as about
from pantherseg import __version__

SPECIFICATION = "1.6"
OWN_NAME = "pantherseg"
DPKG_STATUS = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")
# A licence's whole text stands where its name should in some packages.
MAX_LICENCE_CHARACTERS = 80

Component = dict[str, Any]


def contents(name: str, *, image_id: str | None = None) -> str:
    """Return the CycloneDX document (JSON) of what is installed where this runs.

    name: of the image; image_id: the one that Docker knows it by.
    """
    components = sorted([_python(), *_python_packages(), *_debian_packages()], key=lambda one: str(one["bom-ref"]))
    subject: Component = {
        "type": "container",
        "bom-ref": f"image:{name}",
        "name": name,
        "version": __version__,
        "description": (about or "").strip(),
        "licenses": [{"expression": "Apache-2.0"}],
    }
    if image_id is not None:
        subject["properties"] = [{"name": "docker:image:id", "value": image_id}]
    listed = json.dumps([subject, *components], sort_keys=True)
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, listed)}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def _python() -> Component:
    version = platform.python_version()
    return _component("python", version, f"pkg:generic/python@{version}", ["PSF-2.0"], kind="platform")


def _python_packages() -> Iterator[Component]:
    """Yield the distributions on the path, the first of each name, as Python would import it."""
    seen = {OWN_NAME}
    for found in distributions():
        # Left over from an installation that failed, a folder may have no name in it.
        name = normalised(found.name or "")
        if name and name not in seen:
            seen.add(name)
            yield _component(
                found.name, found.version, f"pkg:pypi/{name}@{quote(found.version, safe='')}", _licences(found)
            )


def normalised(name: str) -> str:
    """Return a Python package's name as it is compared: https://peps.python.org/pep-0503/#normalized-names"""
    return re.sub(r"[-_.]+", "-", name).lower()


def _licences(found: Distribution) -> list[str]:
    """Return what a package says of its licence, in the first of the places for it that says anything short."""
    metadata = found.metadata
    for key in ("License-Expression", "License"):
        text = " ".join(metadata[key].split()) if key in metadata else ""
        if text and text != "UNKNOWN" and len(text) <= MAX_LICENCE_CHARACTERS:
            return [text]
    classifiers = metadata.get_all("Classifier") or []
    return [text.split(" :: ")[-1] for text in classifiers if text.startswith("License :: ")]


def _debian_packages() -> Iterator[Component]:
    if not DPKG_STATUS.is_file():
        return
    system = dict(line.partition("=")[::2] for line in _lines(OS_RELEASE))
    family, release = (system.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    for package in stanzas(_lines(DPKG_STATUS)):
        if package.get("Status", "").endswith(" installed"):
            name, version = package["Package"], package["Version"]
            qualifiers = f"arch={package['Architecture']}&distro={family}-{release}"
            place = f"pkg:deb/{family or 'debian'}/{quote(name, safe='')}@{quote(version, safe='')}?{qualifiers}"
            yield _component(name, version, place, [])


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a Debian control file, with the first line of each field."""
    fields: dict[str, str] = {}
    for line in (*lines, ""):
        if not line.strip() and fields:
            yield fields
            fields = {}
        elif line[:1].strip():  # others go on from the line before
            key, _, value = line.partition(":")
            fields[key] = value.strip()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _component(name: str, version: str, place: str, licences: list[str], *, kind: str = "library") -> Component:
    component: Component = {"type": kind, "bom-ref": place, "name": name, "version": version, "purl": place}
    if licences:
        component["licenses"] = [{"license": {"name": licence}} for licence in licences]
    return component
