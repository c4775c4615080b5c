"""`pantherseg sbom`: list the installed packages."""

from __future__ import annotations

import click

from pantherseg.sbom import contents


@click.command()
@click.option("--name", default="pantherseg", show_default=True, help="Name of the list, such as that of the image.")
@click.option("--image-id", metavar="ID", help="Docker's id of the image, to add to the list.")
def sbom(name: str, image_id: str | None) -> None:
    """List the installed packages as CycloneDX (JSON).

    These are the Python and Debian packages of the machine or container where this command runs.
    """
    click.echo(contents(name, image_id=image_id))
