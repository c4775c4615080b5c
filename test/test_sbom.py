"""The software bill of materials: valid CycloneDX that lists exactly the installed packages."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from locks import locked
from pantherseg import __version__, sbom
from pantherseg.cli import main
from pantherseg.paths import ROOT
from shim.image import built

Document = dict[str, Any]


def pypi(document: Document) -> dict[str, str]:
    """Return the versions of the Python packages of a document by their normalised names."""
    packages = [package for package in document["components"] if package["purl"].startswith("pkg:pypi/")]
    return {sbom.normalised(package["name"]): package["version"] for package in packages}


def check_schema(text: str) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"book"', 1)) is not None, "the validator must find errors"


@pytest.mark.slow
def test_lists_the_installed_python_packages() -> None:
    result = CliRunner().invoke(main, ["sbom", "--name", "some-image", "--image-id", "sha256:0"])
    check_schema(result.stdout)
    document = json.loads(result.stdout)
    subject = document["metadata"]["component"]
    assert (subject["name"], subject["version"]) == ("some-image", __version__)
    assert subject["properties"] == [{"name": "docker:image:id", "value": "sha256:0"}]
    found = pypi(document)
    assert found["numpy"] == version("numpy")
    names = {sbom.normalised(package.name) for package in distributions() if package.name}
    assert found.keys() == names - {"pantherseg"}


@pytest.mark.slow
def test_the_same_packages_give_the_same_bytes() -> None:
    assert sbom.contents("a") == sbom.contents("a")
    assert json.loads(sbom.contents("a"))["serialNumber"] != json.loads(sbom.contents("b"))["serialNumber"]


STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.36-9+deb12u10
Description: a library
 that goes on: here
 .
Conffiles:
 /etc/ld.so.conf.d/x 0123

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 1:12.2.0-14
"""


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Return a function that gives the package URLs for the content of a status file of dpkg."""
    (tmp_path / "os-release").write_text('PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    monkeypatch.setattr(sbom, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(sbom, "DPKG_STATUS", tmp_path / "status")

    def purls(status: str) -> list[str]:
        (tmp_path / "status").write_text(status)
        components = json.loads(sbom.contents("a"))["components"]
        return [package["purl"] for package in components if package["purl"].startswith("pkg:deb/")]

    return purls


def test_lists_the_debian_packages_with_the_status_installed(debian: Callable[[str], list[str]]) -> None:
    assert debian(STATUS) == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14?arch=amd64&distro=debian-12",
    ]
    assert debian("") == []


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT\nLicense: other\n", ["MIT"]),
        ("License: BSD\n", ["BSD"]),
        (f"License: {'whole text ' * 20}\nClassifier: License :: OSI Approved :: MIT License\n", ["MIT License"]),
        ("License: UNKNOWN\n", []),
        ("", []),
    ],
)
def test_finds_the_licence_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: str, expected: list[str]
) -> None:
    folder = tmp_path / "Some_Thing-1.0+x.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: Some_Thing\nVersion: 1.0+x\n{metadata}\n")
    (tmp_path / "~broken-1.dist-info").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr(sbom, "DPKG_STATUS", tmp_path / "none")
    text = sbom.contents("a")
    check_schema(text)
    (component,) = [entry for entry in json.loads(text)["components"] if entry["purl"].startswith("pkg:pypi/")]
    assert component["purl"] == "pkg:pypi/some-thing@1.0%2Bx"
    assert [entry["license"]["name"] for entry in component.get("licenses", [])] == expected


@pytest.mark.docker
@pytest.mark.parametrize("runtime", ["cuda", "cpu"])
def test_lists_every_package_of_an_images_lock_file(runtime: str) -> None:
    image = built("task1" if runtime == "cuda" else "task1-cpu")["Id"]
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "python",
        image,
        "-m",
        "pantherseg",
        "sbom",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    check_schema(text)
    document = json.loads(text)
    found = pypi(document)
    (python,) = [entry["version"] for entry in document["components"] if entry["type"] == "platform"]
    expected = {
        requirement.name: requirement.version
        for requirement in locked(ROOT / f"requirements-{runtime}.lock")
        if requirement.is_for(python)
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found.keys() - expected.keys() <= {"setuptools"}, "packages in the image that are not in the lock file"
    assert any(entry["name"] == "libc6" for entry in document["components"])
