"""Lists the installed Python and Debian packages as a software bill of materials in the CycloneDX format.

In an image, these and the JavaScript that pantherseg contains are all components except for pantherseg itself. The same
packages give the same bytes: the document contains no time and no random number. The format:
https://cyclonedx.org/docs/1.6/json/
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
# Some packages give the whole text of their licence instead of its name.
MAX_LICENCE_CHARACTERS = 80

# What `report/page` contains of other projects: npm's name and version, and the licence.
JAVASCRIPT = (("@niivue/niivue", "0.69.0", "BSD-2-Clause"),)

Component = dict[str, Any]


def contents(name: str, *, image_id: str | None = None) -> str:
    """Return the CycloneDX document (JSON) of the packages installed in this environment.

    name: name of the image; image_id: Docker's id of the image.
    """
    components = [_python(), *_python_packages(), *_debian_packages(), *_javascript()]
    components.sort(key=lambda component: str(component["bom-ref"]))
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
    content = json.dumps([subject, *components], sort_keys=True)
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def _python() -> Component:
    version = platform.python_version()
    return _component("python", version, f"pkg:generic/python@{version}", ["PSF-2.0"], kind="platform")


def _python_packages() -> Iterator[Component]:
    """Yield the distributions on the path; of those with the same name the first, which is the one Python imports."""
    seen = {OWN_NAME}
    for package in distributions():
        # A failed installation may leave a folder without a name behind.
        name = normalised(package.name or "")
        if name and name not in seen:
            seen.add(name)
            purl = f"pkg:pypi/{name}@{quote(package.version, safe='')}"
            yield _component(package.name, package.version, purl, _licences(package))


def _javascript() -> Iterator[Component]:
    for name, version, licence in JAVASCRIPT:
        yield _component(name, version, f"pkg:npm/{quote(name)}@{version}", [licence])


def normalised(name: str) -> str:
    """Return the normalised name of a Python package: https://peps.python.org/pep-0503/#normalized-names"""
    return re.sub(r"[-_.]+", "-", name).lower()


def _licences(package: Distribution) -> list[str]:
    """Return the names of a package's licences, from the first metadata field that has a short value."""
    metadata = package.metadata
    for key in ("License-Expression", "License"):
        text = " ".join(metadata[key].split()) if key in metadata else ""
        if text and text != "UNKNOWN" and len(text) <= MAX_LICENCE_CHARACTERS:
            return [text]
    classifiers = metadata.get_all("Classifier") or []
    return [text.split(" :: ")[-1] for text in classifiers if text.startswith("License :: ")]


def _debian_packages() -> Iterator[Component]:
    if not DPKG_STATUS.is_file():
        return
    os_release = dict(line.partition("=")[::2] for line in _lines(OS_RELEASE))
    family, release = (os_release.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    for package in stanzas(_lines(DPKG_STATUS)):
        if package.get("Status", "").endswith(" installed"):
            name, version = package["Package"], package["Version"]
            qualifiers = f"arch={package['Architecture']}&distro={family}-{release}"
            purl = f"pkg:deb/{family or 'debian'}/{quote(name, safe='')}@{quote(version, safe='')}?{qualifiers}"
            yield _component(name, version, purl, [])


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a Debian control file as fields, each with its first line only."""
    fields: dict[str, str] = {}
    for line in (*lines, ""):
        if not line.strip() and fields:
            yield fields
            fields = {}
        elif line[:1].strip():  # other lines continue a field
            key, _, value = line.partition(":")
            fields[key] = value.strip()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _component(name: str, version: str, purl: str, licences: list[str], *, kind: str = "library") -> Component:
    component: Component = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if licences:
        component["licenses"] = [{"license": {"name": licence}} for licence in licences]
    return component
