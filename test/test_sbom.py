"""What is said to be installed in an image is what is, in a form that tools for it read."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from locks import locked
from pantherseg import __version__, sbom
from pantherseg.cli import main
from pantherseg.paths import ROOT

Document = dict[str, Any]


def pypi(document: Document) -> dict[str, str]:
    """The Python packages of a document, by their normalised names."""
    packages = [one for one in document["components"] if one["purl"].startswith("pkg:pypi/")]
    return {sbom.normalised(one["name"]): one["version"] for one in packages}


def check_schema(text: str) -> None:
    cyclonedx = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    validator = cyclonedx.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"book"', 1)) is not None, "it finds what is wrong"


def test_the_list_is_cyclonedx_and_names_what_is_installed_here() -> None:
    result = CliRunner().invoke(main, ["sbom", "--name", "some-image", "--image-id", "sha256:0"])
    assert result.exit_code == 0
    check_schema(result.stdout)
    document = json.loads(result.stdout)
    subject = document["metadata"]["component"]
    assert (subject["name"], subject["version"]) == ("some-image", __version__)
    assert subject["properties"] == [{"name": "docker:image:id", "value": "sha256:0"}]
    found = pypi(document)
    assert found["numpy"] == version("numpy")
    names = {sbom.normalised(one.name) for one in distributions() if one.name}
    assert found.keys() == names - {"pantherseg"}


def test_the_same_contents_are_the_same_bytes() -> None:
    assert sbom.contents("a") == sbom.contents("a")
    numbers = {json.loads(sbom.contents(name))["serialNumber"] for name in ("a", "b")}
    assert len(numbers) == 2


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
    """Return the addresses of the packages that a status file of dpkg's names."""
    (tmp_path / "os-release").write_text('PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    monkeypatch.setattr(sbom, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(sbom, "DPKG_STATUS", tmp_path / "status")

    def addresses(status: str) -> list[str]:
        (tmp_path / "status").write_text(status)
        components = json.loads(sbom.contents("a"))["components"]
        return [one["purl"] for one in components if one["purl"].startswith("pkg:deb/")]

    return addresses


def test_debians_packages_are_those_that_dpkg_has_installed(debian: Callable[[str], list[str]]) -> None:
    assert debian(STATUS) == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14?arch=amd64&distro=debian-12",
    ]
    assert debian("") == []


def test_what_dpkg_says_is_what_is_listed() -> None:
    if shutil.which("dpkg-query") is None:
        pytest.skip("no Debian")
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version}\n"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = {tuple(line.split()[1:]) for line in lines if line.startswith("installed ")}
    components = json.loads(sbom.contents("a"))["components"]
    found = {(one["name"], one["version"]) for one in components if one["purl"].startswith("pkg:deb/")}
    assert found == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT\nLicense: other\n", ["MIT"]),
        ("License: BSD\n", ["BSD"]),
        (f"License: {'whole text ' * 20}\nClassifier: License :: OSI Approved :: MIT License\n", ["MIT License"]),
        ("License: UNKNOWN\n", None),
        ("", None),
    ],
)
def test_licences_as_packages_say_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: str, expected: list[str] | None
) -> None:
    folder = tmp_path / "Some_Thing-1.0+x.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: Some_Thing\nVersion: 1.0+x\n{metadata}\n")
    (tmp_path / "~broken-1.dist-info").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr(sbom, "DPKG_STATUS", tmp_path / "none")
    text = sbom.contents("a")
    check_schema(text)
    (component,) = [one for one in json.loads(text)["components"] if one["type"] == "library"]
    assert component["purl"] == "pkg:pypi/some-thing@1.0%2Bx"
    licences = component.get("licenses")
    assert (licences and [entry["license"]["name"] for entry in licences]) == expected


@pytest.mark.docker
@pytest.mark.parametrize("runtime", ["cuda", "cpu"])
def test_an_images_list_names_every_package_of_its_lock_file(runtime: str) -> None:
    image = "pantherseg-task1" + ("" if runtime == "cuda" else "-cpu")
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode
    ):
        pytest.skip(f"no Docker engine answers, or ./do_build.sh has not built {image}")
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
    (python,) = [one["version"] for one in document["components"] if one["type"] == "platform"]
    expected = {
        requirement.name: requirement.version
        for requirement in locked(ROOT / f"requirements-{runtime}.lock")
        if requirement.is_for(python)
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found.keys() - expected.keys() <= {"setuptools"}, "what is in the image and not in the lock file"
    assert any(one["name"] == "libc6" for one in document["components"])
