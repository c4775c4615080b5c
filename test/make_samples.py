"""Makes the sample job of each task: a small phantom in the platform's folder layout, and its reference mask.

Run as `python test/make_samples.py`. The files that it writes are in git.
"""

import json
import uuid
from pathlib import Path

from pantherseg.io import write_volume
from pantherseg.phantom import make_phantom

HERE = Path(__file__).parent
SAMPLES = {
    1: ("abdominal-t1-mri", "Abdominal T1 MRI", 5001),
    2: ("abdominal-t2-mri", "Abdominal T2 MRI", 5004),
}


def inputs_json(slug: str, title: str, key: str) -> list[dict[str, object]]:
    """Return inputs.json as the platform writes it, with the new and the old key for the socket."""
    socket = {
        "title": title,
        "description": title,
        "slug": slug,
        "kind": "Image",
        "pk": 1,
        "default_value": None,
        "super_kind": "Image",
        "relative_path": f"images/{slug}",
        "overlay_segments": [],
        "look_up_table": None,
    }
    image = {"pk": key, "name": "phantom.mha"}
    return [{"socket": socket, "interface": socket, "value": None, "file": None, "image": image, "pk": 1}]


def main() -> None:
    for task, (slug, title, seed) in SAMPLES.items():
        phantom = make_phantom(seed, task=task, size="small")
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"pantherseg/task{task}/{seed}"))
        job = HERE / "input" / f"task{task}"
        write_volume(phantom.image, job / "images" / slug / f"{key}.mha")
        write_volume(phantom.labels, HERE / "reference" / f"task{task}" / f"{key}.mha")
        (job / "inputs.json").write_text(json.dumps(inputs_json(slug, title, key), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
