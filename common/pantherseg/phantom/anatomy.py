"""The anatomy of one synthetic patient: a list of parts, each a shape and a tissue, in the order of painting.

Patient coordinates are in mm (x Left, y Posterior, z Superior), with the origin in the middle of the body at the level
of the pancreas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.transform import Rotation

from pantherseg.labels import BACKGROUND, ORGANS, PANCREAS, TUMOUR
from pantherseg.phantom.shapes import Ellipsoid, Points, Shape, Trimmed, Trunk, Tube, Union, Vector, Wobble

# In ml. The volume of the label differs by a few percent from the volume drawn.
TUMOUR_ML = (4.0, 32.0)
# Probability that the tumour is in the head of the pancreas.
TUMOUR_IN_HEAD = 0.55


@dataclass(frozen=True)
class Part:
    """A shape filled with a tissue. organ, label: values for the two label maps, or None to leave a map unchanged.

    gain: factor on the intensity of the tissue; edge: width of the soft margin in mm, at least one voxel.
    """

    shape: Shape
    tissue: str
    organ: int | None = BACKGROUND
    label: int | None = BACKGROUND
    gain: float = 1.0
    edge: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """One patient: the trunk, the thickness of its two layers (mm), and the parts in the order of painting."""

    trunk: Trunk
    fat: float
    muscle: float
    parts: tuple[Part, ...]


@dataclass
class _Sketch:
    """The state shared by the functions that draw one patient."""

    rng: np.random.Generator
    scale: Vector
    cavity: Trunk
    parts: list[Part] = field(default_factory=list)

    def at(self, x: float, y: float, z: float, jitter: float = 4.0) -> Vector:
        """Return a point (mm) scaled to this patient and moved at random by at most `jitter` mm along each axis."""
        point: Vector = np.array([x, y, z]) * self.scale + self.rng.normal(0, jitter / 2, 3).clip(-jitter, jitter)
        return point

    def line(self, knots: Sequence[tuple[float, float, float]], jitter: float = 4.0) -> Vector:
        """Return knots (n, 3) scaled to this patient, each moved as by `at`."""
        return np.array([self.at(*knot, jitter) for knot in knots])

    def blob(
        self,
        centre: Vector,
        radii: tuple[float, float, float],
        *,
        tilt: tuple[float, float, float] = (0, 0, 0),
        rough: float = 0.0,
    ) -> Ellipsoid:
        """Return an ellipsoid with approximately these radii (mm) and this tilt (degrees about x, y, z)."""
        size = np.array(radii) * self.scale * self.rng.normal(1, 0.06, 3).clip(0.85, 1.15)
        angles = np.array(tilt) + self.rng.normal(0, 6, 3)
        wobble = Wobble.draw(self.rng, rough, 1.6 * float(size.mean()))
        return Ellipsoid(centre, size, Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), wobble)

    def add(self, shape: Shape, tissue: str, organ: str | int | None = BACKGROUND, **more: float) -> None:
        """Add a part on top of the parts before it."""
        number = ORGANS[organ] if isinstance(organ, str) else organ
        self.parts.append(Part(shape, tissue, number, None if number is None else BACKGROUND, **more))


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a random patient: size, layers, organs, lesions outside of the pancreas, pancreas and tumour."""
    size = rng.uniform(0.9, 1.1)
    scale = size * rng.uniform(0.95, 1.05, 3)
    fat, muscle = rng.uniform(9, 24), rng.uniform(10, 15)
    trunk = Trunk(138 * scale[0] + fat + muscle, 80 * scale[1] + fat + muscle, taper=rng.uniform(-3, 3))
    sketch = _Sketch(rng, scale, replace(trunk, inset=fat + muscle))
    _chest(sketch, trunk, fat)
    _spine(sketch)
    _upper_organs(sketch)
    for side in (-1, 1):
        _kidney(sketch, side)
    _bowel(sketch)
    _pancreas_and_tumour(sketch)
    return Anatomy(trunk, fat, muscle, tuple(sketch.parts))


def _chest(s: _Sketch, trunk: Trunk, fat: float) -> None:
    top = s.rng.uniform(110, 130)
    for side in (-1, 1):
        lung = s.blob(s.at(side * 78, 22, top), (66, 74, 78), tilt=(-12, 0, 0))
        s.add(Trimmed(lung, within=s.cavity), "lung")
        for level in range(5):
            angle = np.radians(np.linspace(75, -35, 9))
            # Ribs run in the wall and descend from the spine towards the front.
            x, y = trunk.ring(angle, fat + 6)
            z = 95 - 34 * level + 32 * (np.sin(angle) - 0.9)
            s.add(Tube.through(np.stack([side * x, y, z], axis=1), 4.0, pitch=24), "bone")


def _spine(s: _Sketch) -> None:
    for side in (-1, 1):
        back = Tube.through([s.at(side * 30, 76, z, 1) for z in (-140, 0, 140)], 24, pitch=50)
        s.add(Trimmed(back, within=replace(s.cavity, inset=s.cavity.inset - 9)), "muscle")
        s.add(Tube.through([s.at(side * 44, 50, -150, 2), s.at(side * 36, 48, -70, 2), s.at(side * 24, 46, -5, 2)],
                           [21, 17, 6], pitch=20), "muscle")  # fmt: skip
        s.add(Tube.through([s.at(side * x, 36 + x / 3, z, 2) for x, z in ((14, 10), (26, 45), (50, 70))], 4, pitch=20),
              "muscle")  # fmt: skip
    spine = [(0.0, 46.0, -150.0), (0.0, 43.0, -50.0), (0.0, 46.0, 50.0), (0.0, 50.0, 150.0)]
    column = Tube.through(s.line(spine, 1), 19.5 * s.scale[0], pitch=30)
    s.add(column, "marrow")
    offset = s.rng.uniform(0, 33)
    for z in np.arange(-140 + offset, 140, 33.0):
        middle = np.array([np.interp(z, column.points[:, 2], column.points[:, i]) for i in range(3)])
        s.add(Ellipsoid(middle, np.array([21.0, 20.0, 4.5]) * s.scale), "disc")
        behind = middle + np.array([0, 33, 14])
        s.add(s.blob(behind, (5, 16, 11), tilt=(25, 0, 0)), "bone")
        s.add(s.blob(behind - np.array([0, 2, 3]), (26, 5, 6)), "bone")
    canal = Tube(column.points + np.array([0, 25 * s.scale[1], 0]), np.full(len(column.points), 9.5))
    s.add(canal, "csf")
    s.add(Tube(canal.points, np.full(len(canal.points), 4.5)), "cord")


def _upper_organs(s: _Sketch) -> None:
    right = s.blob(s.at(-76, -2, 32), (66, 70, 74), tilt=(0, 12, 0), rough=4)
    left = s.blob(s.at(-8, -44, 52), (66, 28, 34), tilt=(0, -8, -8), rough=3)
    liver = Trimmed(Union((right, left), blend=25), within=replace(s.cavity, inset=s.cavity.inset + 2))
    s.add(liver, "liver", "liver")
    root = s.at(-38, -4, 30)
    for target in ((-80, -20, 60), (-95, 15, 40), (-60, -45, 62), (-85, 10, 5), (-20, -42, 55)):
        end = s.at(*target, 8)
        bend = (root + end) / 2 + s.rng.normal(0, 7, 3)
        s.add(Trimmed(Tube.through([root, bend, end], [4.5, 3.2, 1.5]), within=right), "portal", None)
    for _ in range(s.rng.integers(1, 5)):
        point = right.centre + s.rng.uniform(-0.55, 0.55, 3) * right.radii
        tissue = s.rng.choice(["lesion", "cyst"])
        s.add(s.blob(point, (s.rng.uniform(4, 12),) * 3, rough=1), tissue, None, gain=s.rng.uniform(0.8, 1.25))
    spleen = s.blob(s.at(103, 30, 40), (28, 46, 50), tilt=(-15, 12, -28), rough=3)
    dent = s.blob(s.at(72, 14, 36), (22, 26, 34))
    s.add(Trimmed(spleen, without=(dent,), within=replace(s.cavity, inset=s.cavity.inset + 2)), "spleen", "spleen")
    stomach = Tube.through(
        s.line([(62, 24, 82), (66, -5, 62), (58, -34, 38), (34, -54, 12), (2, -52, 2), (-24, -40, 0)]),
        np.array([24, 28, 27, 20, 15, 10]) * s.scale[0] * s.rng.uniform(0.75, 1.05),
        wobble=Wobble.draw(s.rng, 2.5, 40),
    )
    s.add(stomach, "wall", "stomach")
    filling = s.rng.choice(["fluid", "chyme", "chyme"])
    s.add(replace(stomach, radii=stomach.radii - 4), str(filling), None, gain=s.rng.uniform(0.7, 1.2))
    gallbladder = Tube.through([s.at(-46, -34, 16), s.at(-52, -48, -4), s.at(-56, -58, -24)], [5, 11, 13])
    s.add(gallbladder, "bile", "gallbladder")


def _kidney(s: _Sketch, side: int) -> None:
    name = "left_kidney" if side > 0 else "right_kidney"
    centre = s.at(side * 66, 40, -14 if side > 0 else -30)
    kidney = s.blob(centre, (26, 25, 53), tilt=(-12, -10 * side, -25 * side), rough=1.5)
    s.add(replace(kidney, radii=kidney.radii + 9), "fat")
    s.add(kidney, "cortex", name)
    for along in np.linspace(-0.68, 0.68, 6):
        for across in (-0.5, 0.5):
            local = kidney.radii * [0.38 * side, across, along]
            point = centre + kidney.axes @ local + s.rng.normal(0, 1.2, 3)
            s.add(s.blob(point, (9, 7, 7)), "medulla", None)
    s.add(Ellipsoid(centre - kidney.axes @ [side * 13.0, 0, 0], kidney.radii * [0.6, 0.34, 0.5], kidney.axes), "fat", 0)
    if s.rng.random() < 0.5:
        point = centre + kidney.axes @ (kidney.radii * [0.8 * side, 0.2, s.rng.uniform(-0.6, 0.6)])
        s.add(s.blob(point, (s.rng.uniform(6, 14),) * 3), "cyst", 0, gain=s.rng.uniform(0.8, 1.6))
    s.add(s.blob(s.at(side * 42, 34, 30), (5, 14, 12), tilt=(20, 0, 20 * side)), "muscle")


def _loop(s: _Sketch, knots: Vector, radius: float, wall: float = 2.0) -> None:
    """Add a loop of bowel with a random filling."""
    tube = Tube.through(knots, radius, wobble=Wobble.draw(s.rng, 1.5, 22), pitch=13)
    s.add(Trimmed(tube, within=s.cavity), "wall")
    filling = str(s.rng.choice(["chyme", "chyme", "lesion", "fluid", "gas"]))
    s.add(Trimmed(tube.grown(-wall), within=s.cavity), filling, gain=s.rng.uniform(0.75, 1.25))


def _bowel(s: _Sketch) -> None:
    _loop(s, s.line([(-98, 12, -130), (-100, 14, -80), (-94, 6, -42), (-74, -34, -34)], 8), s.rng.uniform(15, 22))
    _loop(s, s.line([(-74, -44, -36), (-20, -68, -48), (40, -66, -32), (92, -38, 2)], 10), s.rng.uniform(13, 19))
    _loop(s, s.line([(98, -20, 4), (108, 16, -30), (106, 22, -80), (104, 14, -130)], 6), s.rng.uniform(12, 16))
    for number in range(16):
        # Half of the loops are jejunum, further left and higher up.
        left, low, high = (20, -80, 5) if number % 2 else (-65, -125, -45)
        point = s.at(s.rng.uniform(left, 88), s.rng.uniform(-60, 8), s.rng.uniform(low, high), 2)
        heading = s.rng.normal(size=3) * [1, 0.7, 0.7]
        knots = [point]
        for _ in range(5):
            heading = heading / np.linalg.norm(heading) + s.rng.normal(0, 0.55, 3)
            knots.append(knots[-1] + 17 * heading / np.linalg.norm(heading))
        _loop(s, np.array(knots), s.rng.uniform(9.5, 14))


def _pancreas_line(s: _Sketch) -> Tube:
    """Return the pancreas: the head at the patient's right, the body over the great vessels, the tail at the spleen."""
    rise = s.rng.normal(0, 9)
    knots = [(-24, 3, -40), (-33, -5, -20), (-24, -17, -2), (-4, -27, 5), (24, -25, 12), (54, -4, 20 + rise / 2),
             (80, 16, 30 + rise)]  # fmt: skip
    radii = np.array([10, 15, 13, 9, 10.5, 10.5, 7.5]) * s.scale.mean() * s.rng.uniform(0.86, 1.12)
    radii *= s.rng.uniform(0.92, 1.08, len(radii))
    return Tube.through(s.line(knots, 5), radii, wobble=Wobble.draw(s.rng, 1.3, 13, 6), pitch=5)


def _pancreas_and_tumour(s: _Sketch) -> None:
    pancreas = _pancreas_line(s)
    _loop(s, s.line([(-22, -36, 2), (-46, -26, 2), (-54, -4, -14), (-52, 6, -40), (-34, 10, -60), (8, 4, -62),
                     (34, -8, -46)], 4), s.rng.uniform(10, 12.5))  # fmt: skip
    for _ in range(s.rng.integers(4, 9)):
        point = s.at(s.rng.uniform(-70, 70), s.rng.uniform(-40, 25), s.rng.uniform(-70, 60), 0)
        radius = s.rng.uniform(4, 9)
        if np.linalg.norm(pancreas.points - point, axis=1).min() > 24 + radius:
            s.add(s.blob(point, (radius, radius, radius * 1.3), rough=0.6), "lesion", gain=s.rng.uniform(0.85, 1.2))
    s.add(pancreas.grown(3.5), "fat", edge=3)
    vessels = _vessels(s, pancreas)
    s.parts.append(Part(Trimmed(pancreas, without=vessels), "pancreas", ORGANS["pancreas"], PANCREAS, edge=1.5))
    head = s.rng.random() < TUMOUR_IN_HEAD
    where = s.rng.uniform(0.12, 0.35) if head else s.rng.uniform(0.45, 0.9)
    index = round(where * (len(pancreas.points) - 1))
    if s.rng.random() < 0.6:
        width = s.rng.uniform(1.0, 2.2)
        duct = Tube(pancreas.points[index:-1], np.full(len(pancreas.points) - 1 - index, width))
        s.add(duct, "cyst", None, edge=1.5)
    tumour = _tumour(s, pancreas.points[index], float(pancreas.radii[index]), vessels)
    s.parts.append(Part(tumour, "tumour", ORGANS["pancreas"], TUMOUR, edge=s.rng.uniform(2, 4.5)))


def _vessels(s: _Sketch, pancreas: Tube) -> tuple[Shape, ...]:
    """Add the great vessels and those along the pancreas, and return those to be cut out of it."""
    size = s.scale.mean()
    aorta = Tube.through(s.line([(11, 20, -150), (9, 15, -50), (8, 17, 50), (10, 24, 150)], 2), 9.5 * size, pitch=25)
    cava = Tube.through(s.line([(-20, 20, -150), (-21, 16, -50), (-26, 14, 40), (-24, 6, 150)], 2), 11 * size, pitch=25)
    middle = pancreas.points[len(pancreas.points) // 2]
    vein = Tube.through([s.at(-2, -8, -110), s.at(-6, -10, -50), middle + np.array([-7, 16, -8]), s.at(-24, -6, 22, 2),
                         s.at(-40, -6, 34, 2)], [4, 5.5, 6.5, 6.5, 5.5])  # fmt: skip
    artery = Tube.through([s.at(8, 8, 6, 1), s.at(7, 0, -10, 1), s.at(6, -4, -50, 2), s.at(6, -6, -110)], 3.8)
    half = len(pancreas.points) // 2
    back = pancreas.points[half:] + np.outer(pancreas.radii[half:], [-0.25, 0.85, 0.3])
    splenic = Tube(back, np.full(len(back), 3.3))
    for tube, tissue in ((cava, "cava"), (splenic, "portal"), (vein, "portal"), (artery, "artery"), (aorta, "artery")):
        s.add(tube, tissue)
    return aorta, cava, vein, artery


def _tumour(s: _Sketch, on: Vector, radius: float, vessels: tuple[Shape, ...]) -> Shape:
    """Return an irregular blob at a point of the pancreas, whose volume without the vessels is drawn at random."""
    low, high = np.log(TUMOUR_ML)
    target = 1000 * np.exp(s.rng.uniform(low, high))
    offset = s.rng.normal(size=3)
    centre = on + offset / np.linalg.norm(offset) * radius * s.rng.uniform(0, 0.7)
    ratios = s.rng.uniform(0.75, 1.3, 3)
    ratios *= (target * 3 / (4 * np.pi) / ratios.prod()) ** (1 / 3)
    axes = Rotation.from_rotvec(s.rng.normal(size=3)).as_matrix()
    blob = Ellipsoid(centre, ratios, axes, Wobble.draw(s.rng, 0.13 * ratios.mean(), 1.5 * ratios.mean()))
    for _ in range(3):
        shape = Trimmed(blob, without=vessels)
        start, stop = shape.bounds()
        step = 1.5
        z, y, x = (int(n) for n in np.ceil((stop - start) / step)[::-1] + 1)
        inside = shape.distance(Points(start, np.eye(3) * step, (z, y, x))) < 0
        factor = (target / max(inside.sum() * step**3, 1)) ** (1 / 3)
        blob = replace(blob, radii=blob.radii * factor)
    return Trimmed(blob, without=vessels)
