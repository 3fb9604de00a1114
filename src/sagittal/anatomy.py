"""Anatomy: a chest drawn in Hounsfield units, with the truth of what was drawn.

A body with skin, fat and muscle on a couch; ribs, sternum, scapulae and a spine of vertebrae and discs; mediastinal fat
with heart, aorta, vena cava and oesophagus; trachea and bronchi; two lungs over the domes of the diaphragm, denser where
they lie (supine), with fissures, texture and four vascular trees; and solid nodules. Voxels hold the mean over their
volume; the noise follows dose, slice thickness and kernel. Nothing comes from a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import ConfigError
from sagittal.types import Floats

#: Hounsfield units of the tissues, at 120 kV without contrast medium.
TISSUE_HU = {
    "air": -1000.0,
    "lung": -855.0,
    "fat": -100.0,
    "muscle": 52.0,
    "blood": 42.0,
    "liver": 58.0,
    "spleen": 48.0,
    "marrow": 190.0,
    "bone": 480.0,
    "cartilage": 110.0,
    "nodule": 35.0,
}

#: Per kernel: HU noise at 5 mGy and 5 mm, blur of the edges in pixels, pass band of the noise in cycles per pixel.
KERNELS = {"soft": (9.0, 0.55, 0.30), "standard": (13.0, 0.42, 0.38), "sharp": (20.0, 0.30, 0.50)}


@dataclass(frozen=True)
class Nodule:
    """A solid nodule.

    Parameters
    ----------
    centre : (3,) float, mm
        In patient coordinates LPS+.
    diameter_mm : float
        Of the sphere; a spiculated nodule has rays beyond it.
    spiculated : bool
    site : str
        ``"free"`` in the lung, on a ``"vessel"`` or on the ``"pleura"``.
    """

    centre: tuple[float, float, float]
    diameter_mm: float
    spiculated: bool = False
    site: str = "free"


@dataclass(frozen=True)
class Patient:
    """Someone who never lived.

    Parameters
    ----------
    anatomy : int
        Seed of shapes, vessels and texture: the same number is the same person.
    age : int, years
    sex : str
        ``"F"`` or ``"M"``.
    size : float
        Of the body relative to the mean, about 0.9 to 1.1.
    fat_mm : float, mm
        Thickness of the fat under the skin.
    """

    anatomy: int
    age: int = 60
    sex: str = "M"
    size: float = 1.0
    fat_mm: float = 14.0


@dataclass(frozen=True)
class Scan:
    """How the patient was scanned.

    Parameters
    ----------
    dose_mgy : float, mGy
        CTDIvol.
    kernel : str
        One of :data:`KERNELS`.
    slice_mm : float, mm
        Thickness and distance of the slices, which touch.
    pixels : int
        Rows and columns.
    field_mm, height_mm : float, mm
        Edge of the square field of view, length of the scan.
    centre_x_mm : float, mm
        Where the field of view lies: 0 amid the body, -64 about the right lung.
    noise : int
        Seed of the quantum noise.
    """

    dose_mgy: float = 5.0
    kernel: str = "standard"
    slice_mm: float = 5.0
    pixels: int = 64
    field_mm: float = 336.0
    height_mm: float = 160.0
    centre_x_mm: float = 0.0
    noise: int = 0

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ConfigError(f"unknown kernel '{self.kernel}'. Known: {', '.join(KERNELS)}.")
        if min(self.dose_mgy, self.slice_mm, self.pixels, self.field_mm, self.height_mm) <= 0:
            raise ConfigError(f"dose, slice thickness, pixels and lengths of a scan must be positive: {self}")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths along column, row and slice, mm."""
        return (self.field_mm / self.pixels, self.field_mm / self.pixels, self.slice_mm)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return max(1, round(self.height_mm / self.slice_mm))

    def centres(self, over: int = 1) -> tuple[Floats, Floats, Floats]:
        """Voxel centres x (1, 1, I), y (1, J, 1), z (K * over, 1, 1) in mm, LPS+; the body's middle is 0."""
        edge, _, step = self.spacing
        across = (np.arange(self.pixels) - (self.pixels - 1) / 2) * edge
        count = self.slices * over
        along = (np.arange(count) - (count - 1) / 2) * step / over
        return self.centre_x_mm + across[None, None, :], across[None, :, None], along[:, None, None]


@dataclass(frozen=True, eq=False)
class Phantom:
    """One drawn study.

    Parameters
    ----------
    hu : (K, J, I) float32, HU
        Slices from the feet to the head, rows, columns.
    clean : (K, J, I) float32, HU
        The same before noise.
    occupancy : dict of str to (K, J, I) float32
        Share of each voxel, 0 to 1, that is ``lung`` (vessels and nodules included), ``vessel`` or ``nodule``.
    """

    hu: Floats
    clean: Floats
    occupancy: dict[str, Floats]


def noise_sd(scan: Scan) -> float:
    """Standard deviation of the noise amid an average body, in HU.

    Its variance goes as 1 / (dose x slice thickness), as for a Poisson count of photons.

    >>> round(noise_sd(Scan(dose_mgy=1.25)) / noise_sd(Scan(dose_mgy=5.0)), 6)
    2.0
    """
    return float(KERNELS[scan.kernel][0] * np.sqrt(5.0 / scan.dose_mgy * 5.0 / scan.slice_mm))


def draw_chest(patient: Patient, scan: Scan, nodules: tuple[Nodule, ...] = ()) -> Phantom:
    """Draw one chest CT.

    Parameters
    ----------
    patient : Patient
    scan : Scan
    nodules : tuple of Nodule
        What to put into the lungs; :func:`place_nodules` finds places for them.

    Returns
    -------
    Phantom

    Examples
    --------
    >>> phantom = draw_chest(Patient(anatomy=1), Scan(pixels=32, slice_mm=20.0))
    >>> phantom.hu.shape
    (8, 32, 32)
    >>> bool(abs(np.median(phantom.hu[phantom.occupancy["lung"] > 0.99]) + 850) < 40)
    True
    """
    chest = _Chest(patient, scan)
    vessel = chest.fill(*_tubes(chest.branches())) * chest.lung
    nodule = np.zeros_like(vessel)
    for one in nodules:
        nodule = np.maximum(nodule, chest.nodule(one))
    # A nodule on the pleura ends at the chest wall.
    nodule *= chest.lung
    hu = chest.tissue()
    hu += vessel * (TISSUE_HU["blood"] - hu)
    hu += nodule * (TISSUE_HU["nodule"] - hu)
    hu, vessel, nodule, lung = (_pairs(part) for part in (hu, vessel, nodule, chest.lung))
    clean = _blur(hu, KERNELS[scan.kernel][1])
    noisy = np.clip(clean + chest.noise(), -1024, 3071).astype(np.float32)
    return Phantom(noisy, clean, {"lung": lung, "vessel": vessel, "nodule": nodule})


def place_nodules(
    patient: Patient,
    scan: Scan,
    count: int,
    rng: np.random.Generator,
    *,
    diameters_mm: Sequence[float] | None = None,
) -> tuple[Nodule, ...]:
    """Draw `count` nodules that fit into this patient's lungs.

    A third each lies free, on a vessel, on the pleura; four in ten are spiculated. Diameters, unless they are given, go
    from 8 to 30 mm, where a nodule becomes a mass; the first has at least 14 mm.

    Raises
    ------
    ConfigError
        If the scan is too small for so many, or as many diameters are not given.
    """
    from scipy.ndimage import distance_transform_edt

    if diameters_mm is not None and len(diameters_mm) != count:
        raise ConfigError(f"{count} nodules need as many diameters, not {len(diameters_mm)}")
    if not count:
        return ()
    chest = _Chest(patient, scan)
    depth = distance_transform_edt(chest.lung > 0.9, sampling=(scan.slice_mm / 2, *scan.spacing[:2]))
    x, y, z = np.broadcast_arrays(*scan.centres(over=2))
    # Away from the hila, where no reader could tell a nodule from a vessel.
    far = (depth > 4) & (np.abs(x) > 52)
    lung, lung_depth = np.stack([x[far], y[far], z[far]], axis=1), depth[far]
    vessels = np.array([end for _, end, radius in chest.branches() if radius > 0.9 and abs(end[0]) > 52])
    vessel_depth = chest.sample(depth, vessels)
    found: list[Nodule] = []
    for _ in range(200 * count + 1):
        if len(found) == count:
            return tuple(found)
        low = 8.0 if found else 14.0
        drawn = np.clip(rng.lognormal(np.log(22.0), 0.25), low, 30.0)
        diameter = float(drawn if diameters_mm is None else diameters_mm[len(found)])
        radius = diameter / 2
        site = ("free", "vessel", "pleura")[rng.integers(3)]
        if site == "vessel":
            candidates = vessels[vessel_depth > 0.6 * radius]
        elif site == "free":
            candidates = lung[lung_depth > radius]
        else:
            candidates = lung[np.abs(lung_depth - 0.75 * radius) < 2.0]
        # Whole inside the scan.
        margin = radius + 4
        across = np.abs(candidates[:, :2] - [scan.centre_x_mm, 0]).max(axis=1, initial=0)
        inside = (across < scan.field_mm / 2 - margin) & (np.abs(candidates[:, 2]) < scan.height_mm / 2 - margin)
        candidates = candidates[inside]
        if not len(candidates):
            continue
        centre = candidates[rng.integers(len(candidates))] + rng.uniform(-0.5, 0.5, 3)
        if all(np.linalg.norm(centre - np.array(other.centre)) > diameter + 10 for other in found):
            at = (float(centre[0]), float(centre[1]), float(centre[2]))
            found.append(Nodule(at, diameter, bool(rng.random() < 0.4), site))
    raise ConfigError(f"found no place for {count} nodules in a scan of {scan.height_mm:g} mm: use fewer or scan more")


Branch = tuple[Floats, Floats, float]  # from (3,), to (3,), radius: mm


class _Chest:
    """The anatomy of one patient on the voxels of one scan, each slice drawn as two thinner ones."""

    def __init__(self, patient: Patient, scan: Scan) -> None:
        self.patient, self.scan = patient, scan
        self.x, self.y, self.z = (axis.astype(np.float32) for axis in scan.centres(over=2))
        self.shape = np.broadcast_shapes(self.x.shape, self.y.shape, self.z.shape)
        rng = np.random.default_rng([patient.anatomy, 1])
        self.a, self.b = 154 * patient.size, 114 * patient.size * rng.uniform(0.95, 1.05)
        self.cavity_a = min(self.a - patient.fat_mm - 24, 132)
        self.cavity_b = min(self.b - 0.6 * patient.fat_mm - 18, 88)
        self.domes = rng.uniform(-62, -48), rng.uniform(-72, -58)  # tops of the right and left diaphragm, mm
        self.rib_phase = rng.uniform(0, 24)
        self.heart_size = rng.uniform(0.92, 1.08) * patient.size
        self.tilt = rng.uniform(0.25, 0.75)  # HU per mm from front to back
        self.density = rng.normal(TISSUE_HU["lung"], 14) - 0.35 * (patient.age - 60)
        # The thorax narrows towards its apex and a little below its widest place.
        self.taper = (
            1 - 0.36 * (np.clip(self.z + 35, 0, None) / 140) ** 2 - 0.10 * (np.clip(-35 - self.z, 0, None) / 60) ** 2
        )
        angle = np.arctan2(self.y, self.x)
        # No one is an ellipse: the outlines wander by a few per cent, of the body and of each side of the chest.
        self.body = self._radius(0, 0, self.a, self.b, 2.5) * self._wander(angle, rng, 0.012)
        self.wall = self._radius(0, 0, self.cavity_a * self.taper, self.cavity_b * (0.35 + 0.65 * self.taper), 2.3)
        self.wall = self.wall * self._wander(angle, rng, 0.014)
        self.middle = self._radius(3, 8, 36, 56) * self._wander(angle, rng, 0.05)
        self.lung = self._lung()

    @staticmethod
    def _wander(angle: Any, rng: np.random.Generator, share: float) -> Any:
        """A slow modulation of an outline along its angle."""
        orders = range(1, 6)
        return 1 + sum(share * rng.normal() / n**0.5 * np.cos(n * angle + rng.uniform(0, 6.3)) for n in orders)

    def _radius(self, x: float, y: float, a: Any, b: Any, power: float = 2.0) -> Any:
        """Superelliptic radius about (x, y): 1 on the outline."""
        u, v = np.abs((self.x - x) / a), np.abs((self.y - y) / b)
        if power == 2.0:
            return np.sqrt(u * u + v * v)
        return (u**power + v**power) ** (1 / power)

    def _ball(self, centre: tuple[float, float, float], axes: tuple[float, float, float]) -> Any:
        """Coverage of an ellipsoid."""
        r = np.sqrt(
            ((self.x - centre[0]) / axes[0]) ** 2
            + ((self.y - centre[1]) / axes[1]) ** 2
            + ((self.z - centre[2]) / axes[2]) ** 2
        )
        return self._cover((r - 1) * min(axes))

    def _cover(self, depth: Any) -> Any:
        """Share of a voxel inside a surface `depth` mm away, negative inside: exact for a plane along the grid."""
        return np.clip(0.5 - depth / np.float32(self.scan.spacing[0]), 0, 1)

    def _below_diaphragm(self) -> Any:
        cover: Any = np.float32(0)
        for side, top in zip((-1, 1), self.domes, strict=True):
            fall = 50 * (((self.x - side * 66) / 66) ** 2 + ((self.y + 4) / 84) ** 2)
            cover = np.maximum(cover, np.clip(0.5 - (self.z - top + fall) / np.float32(4), 0, 1))
        return cover

    def _lung(self) -> Any:
        size = self.heart_size
        self.heart = self._ball((22, -26, -46), (60 * size, 47 * size, 50 * size))
        pericardium = self._ball((22, -26, -46), (66 * size, 52 * size, 57 * size))
        # Wide at the hila, narrow behind the sternum, and a ridge over the spine.
        middle = self._cover((self.middle - 1) * 36)
        strip = self._cover(np.abs(self.x) - 5 - 0.10 * np.clip(-self.y - 30, 0, None))
        spine = self._cover((self._radius(0, self.cavity_b - 16, 27, 25) - 1) * 25)
        arch = self._ball((14, 4, 34), (30, 40, 17))
        self.mediastinum = 1 - (1 - pericardium) * (1 - middle) * (1 - strip) * (1 - spine) * (1 - arch)
        self.abdomen = self._below_diaphragm()
        inside = self._cover((self.wall - 1) * self.cavity_b)
        return inside * (1 - self.mediastinum) * (1 - self.abdomen)

    def tissue(self) -> Any:
        """HU of everything but the vessels of the lungs and nodules, (2 K, J, I)."""
        hu = np.full(self.shape, TISSUE_HU["air"], dtype=np.float32)

        def paint(cover: Any, value: Any) -> None:
            nonlocal hu
            hu += cover * (value - hu)

        self._paint_body(paint)
        self._paint_trunk(paint)
        paint(self.lung, self._parenchyma())
        self._paint_airways(paint)
        return hu

    def _paint_body(self, paint: Callable[[Any, Any], None]) -> None:
        size = self.patient.size
        couch = self._cover(np.abs(self.y - self.b - 8 + 0.0009 * self.x**2) - 1.2) * (np.abs(self.x) < 160)
        paint(couch, -350.0)
        depth = (self.body - 1) * self.b
        soft = self._field("fat streaks", 2.5)
        if self.patient.sex == "F":
            for side in (-1, 1):
                breast = self._ball((side * 72 * size, -self.b * 0.86, -18), (52, 34, 58))
                paint(breast, 15.0)
                inner = self._ball((side * 72 * size, -self.b * 0.86, -18), (49, 31, 55))
                paint(inner, TISSUE_HU["fat"] + 55 * np.clip(soft - 0.4, 0, 1))
        paint(self._cover(depth), 15.0)
        paint(self._cover(depth + 2.5), TISSUE_HU["fat"])
        # Fat lies thicker in front and at the flanks than over the back muscles.
        fat = self.patient.fat_mm * (0.75 + 0.25 * (self.x / self.a) ** 2 - 0.2 * self.y / self.b)
        muscle = self._cover(depth + fat)
        paint(muscle, TISSUE_HU["muscle"] - 60 * np.clip(soft - 0.9, 0, 1))
        # Planes of fat between the muscles and the ribs.
        outside = (self.wall - 1) * self.cavity_b
        paint(muscle * self._cover(np.abs(outside - 14) - 1.2) * 0.7, TISSUE_HU["fat"])
        # Ribs run down from the spine to the front; their front ends are cartilage.
        angle = np.arctan2(np.abs(self.x) / self.cavity_a, self.y / self.cavity_b)
        along = (self.z + self.rib_phase + 38 * (1 - np.cos(angle))) % 24 - 12
        rib = self._cover(np.abs(outside - 6.5) - 4) * np.clip(0.5 - (np.abs(along) - 5) / 4, 0, 1)
        rib *= np.abs(self.x) > 14
        front = np.clip((angle - 2.35) / 0.15, 0, 1)
        paint(rib, TISSUE_HU["bone"] - 60 + front * (TISSUE_HU["cartilage"] - TISSUE_HU["bone"] + 60))
        sternum = self._radius(0, -self.cavity_b - 7, 21, 7)
        paint(self._cover((sternum - 1) * 7) * (self.z > -55), 300.0)
        for side in (-1, 1):
            u = side * self.x - 96 * size
            v = self.y - 0.66 * self.b
            across, thick = u * 0.80 - v * 0.60, u * 0.60 + v * 0.80
            blade = np.clip((self.z + 15) / 12, 0, 1) * self._cover((np.hypot(across / 34, thick / 3.4) - 1) * 3.4)
            paint(blade, TISSUE_HU["bone"] - 80)

    def _paint_trunk(self, paint: Callable[[Any, Any], None]) -> None:
        inside = self._cover((self.wall - 1) * self.cavity_b)
        paint(inside * self.mediastinum, TISSUE_HU["fat"] + 20)
        # Under the right dome the liver, under the left spleen and stomach, with fat between.
        organ = np.where(self.x < 18, TISSUE_HU["liver"], TISSUE_HU["spleen"])
        paint(inside * self.abdomen, organ)
        paint(inside * self.abdomen * self._ball((64, -34, -78), (34, 30, 16)), -20.0)
        paint(self.heart * inside, TISSUE_HU["blood"])
        back = self.cavity_b - 16
        vessels = [
            ((-20, -22), 16.0, (-46, 34)),  # ascending aorta
            ((27, back - 18), 12.0, (-200, 34)),  # descending aorta
            ((-30, -6), 9.5, (-46, 200)),  # superior vena cava
            ((10, -22), 14.0, (-46, 16)),  # pulmonary trunk
            ((12, 2), 6.0, (34, 200)),  # left carotid
            ((22, 10), 6.0, (34, 200)),  # left subclavian
            ((-8, -8), 7.0, (34, 200)),  # brachiocephalic trunk
            ((8, back - 26), 7.0, (-200, 200)),  # oesophagus
        ]
        for (x, y), radius, (low, high) in vessels:
            column = self._cover((self._radius(x, y, radius, radius) - 1) * radius)
            paint(column * np.clip((self.z - low) / 4, 0, 1) * np.clip((high - self.z) / 4, 0, 1), TISSUE_HU["blood"])
        paint(self._ball((8, 4, 34), (24, 34, 11)), TISSUE_HU["blood"])  # arch
        # The spine: bodies of 20 mm, discs of 5 mm, a canal, processes.
        level = np.abs((self.z + self.rib_phase) % 25 - 12.5)
        disc = np.clip((level - 9.5) / 2, 0, 1)
        paint(
            self._cover((self._radius(0, back, 18, 15) - 1) * 15), TISSUE_HU["bone"] + disc * (90 - TISSUE_HU["bone"])
        )
        paint(self._cover((self._radius(0, back, 15.5, 12.5) - 1) * 12.5), TISSUE_HU["marrow"] - 100 * disc)
        ring = self._cover((self._radius(0, back + 22, 14, 12) - 1) * 12)
        paint(ring, TISSUE_HU["bone"] - 60)
        tip = np.clip(1.6 - level / 8, 0, 1) * self._cover((self.body - 1) * self.b + 7)
        paint(tip * self._cover((self._radius(0, back + 36, 4, 12) - 1) * 4), TISSUE_HU["bone"] - 100)
        paint(tip * self._cover((self._radius(0, back + 18, 33, 5) - 1) * 5), TISSUE_HU["bone"] - 100)
        paint(self._cover((self._radius(0, back + 21, 9, 8) - 1) * 8), 25.0)

    def _parenchyma(self) -> Any:
        """HU of the lung itself: heavier where it lies, mottled, with a fissure in each lung."""
        hu = self.density + self.tilt * self.y + 16 * self._field("mottle", 1.1) + 14 * self._field("regions", 9.0)
        if self.patient.age > 60:  # centrilobular emphysema in some of the elderly
            holes = np.clip(self._field("holes", 1.8) - 1.3, 0, 1)
            hu = hu - 90 * holes * np.clip(self._field("where holes are", 12.0), 0, 1.5)
        # The oblique fissures run from high at the back to low in front.
        plane = (self.z + 8 - 0.75 * self.y + 0.0012 * self.y**2) * 0.8
        return hu + 70 * np.clip(1 - np.abs(plane) / 2.5, 0, 1)

    def _paint_airways(self, paint: Callable[[Any, Any], None]) -> None:
        trachea = np.clip((self.z - 12) / 4, 0, 1)
        paint(trachea * self._cover((self._radius(-2, 8, 11, 11) - 1) * 11), 20.0)
        paint(trachea * self._cover((self._radius(-2, 8, 9, 9) - 1) * 9), TISSUE_HU["air"])
        for side, end in ((-1, (-46, 14, -14)), (1, (48, 16, -10))):
            for radius, value in ((7.5, 10.0), (5.6, TISSUE_HU["air"])):
                points, volume = _tubes([(np.array([-2.0 + side, 9, 14]), np.array(end, float), radius)])
                paint(self.fill(points, volume), value)

    def _field(self, name: str, scale: float) -> Any:
        """A random field of mean 0 and variance 1 with a correlation length in pixels."""
        from scipy.fft import irfftn, rfftn

        rng = np.random.default_rng([self.patient.anatomy, *name.encode()])
        white = rng.standard_normal(self.shape, dtype=np.float32)
        sigma = (scale * self.scan.spacing[0] / (self.scan.slice_mm / 2), scale, scale)
        spectrum = rfftn(white)
        for axis, (n, width) in enumerate(zip(self.shape, sigma, strict=True)):
            frequency = np.fft.rfftfreq(n) if axis == 2 else np.fft.fftfreq(n)
            gain = np.exp(-2 * (np.pi * width * frequency) ** 2).astype(np.float32)
            spectrum *= gain.reshape([-1 if a == axis else 1 for a in range(3)])
        field = irfftn(spectrum, s=self.shape)
        return field / field.std()

    def branches(self) -> list[Branch]:
        """Two trees of vessels in each lung, which taper towards its surface."""
        rng = np.random.default_rng([self.patient.anatomy, 2])
        x, y, z = np.broadcast_arrays(self.x, self.y, self.z)
        inside = self.lung > 0.98
        result: list[Branch] = []
        for side in (-1, 1):
            half = np.flatnonzero((inside & (side * x > 0)).ravel())
            if not len(half):
                continue  # outside the field of view
            for root in ((side * 34.0, 6.0, 4.0), (side * 34.0, 2.0, -22.0)):
                chosen = rng.choice(half, size=min(130, len(half)), replace=False)
                tips = np.stack([axis.ravel()[chosen] for axis in (x, y, z)], axis=1).astype(np.float64)
                result += _tree(np.array(root), tips, rng)
        return result

    def fill(self, points: Floats, volume: Floats) -> Any:
        """Share of each voxel that is filled by points which stand for a volume in mm³ each, (2 K, J, I)."""
        edge, _, step = self.scan.spacing
        step /= 2
        index = np.rint((points - [self.x.flat[0], self.y.flat[0], self.z.flat[0]]) / [edge, edge, step]).astype(
            np.int64
        )[:, ::-1]
        kept = np.all((index >= 0) & (index < self.shape), axis=1)
        flat = np.ravel_multi_index(tuple(index[kept].T), self.shape)
        filled = np.bincount(flat, weights=volume[kept], minlength=int(np.prod(self.shape)))
        return np.minimum(filled / (edge * edge * step), 1).reshape(self.shape).astype(np.float32)

    def nodule(self, nodule: Nodule) -> Any:
        """Share of each voxel that a nodule fills: each voxel is asked at points 0.8 mm apart or less."""
        edge, _, step = self.scan.spacing
        lines = []
        for axis, size, at in zip((self.x, self.y, self.z), (edge, edge, step / 2), nodule.centre, strict=True):
            parts = int(np.ceil(size / 0.8))
            centres = axis.ravel().astype(np.float64)
            near = centres[np.abs(centres - at) < nodule.diameter_mm + size]
            lines.append((near[:, None] + ((np.arange(parts) + 0.5) / parts - 0.5) * size).ravel())
        points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
        inside = points[_inside_nodule(nodule, points, self.patient.anatomy)]
        volume = np.prod([line[1] - line[0] for line in lines]) if len(inside) else 0.0
        return self.fill(inside, np.full(len(inside), volume))

    def sample(self, field: Any, points: Floats) -> Any:
        """The value of a field in the voxel of each point."""
        edge, _, step = self.scan.spacing
        index = np.rint((points - [self.x.flat[0], self.y.flat[0], self.z.flat[0]]) / [edge, edge, step / 2]).astype(
            int
        )
        index = np.clip(index[:, ::-1], 0, np.array(self.shape) - 1)
        return field[tuple(index.T)]

    def noise(self) -> Any:
        """Quantum noise in HU, (K, J, I): a ramp cut off by the kernel, strongest amid the body."""
        rng = np.random.default_rng([self.scan.noise, 3])
        n = self.scan.pixels
        frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
        gain = np.sqrt(frequency) * np.exp(-((frequency / KERNELS[self.scan.kernel][2]) ** 2))
        white = rng.standard_normal((self.scan.slices, n, n), dtype=np.float32)
        noise = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(n, n))
        noise /= noise.std()
        inside = self.body[0]
        profile = 0.45 + 0.6 * np.exp(-((inside / 0.95) ** 2))
        return noise_sd(self.scan) * profile * noise


def _tree(root: Floats, tips: Floats, rng: np.random.Generator) -> list[Branch]:
    """Vessels from a root to every tip: short wiring against short ways [Cuntz et al., PLoS Comput Biol 6(8), 2010]."""
    nodes, parent, way = [root], [-1], [0.0]
    for tip in tips[np.argsort(np.linalg.norm(tips - root, axis=1))]:
        known = np.array(nodes)
        reach = np.linalg.norm(known - tip, axis=1)
        start = int(np.argmin(reach + 0.45 * np.array(way)))
        steps = max(1, round(reach[start] / 7.0))
        before = start
        for n in range(1, steps + 1):
            bend = rng.normal(0, 0.9, 3) if n < steps else 0.0
            nodes.append(known[start] + (tip - known[start]) * n / steps + bend)
            parent.append(before)
            way.append(way[start] + reach[start] * n / steps)
            before = len(nodes) - 1
    tips_behind = np.ones(len(nodes))
    for n in range(len(nodes) - 1, 0, -1):  # children come after their parents
        tips_behind[parent[n]] += tips_behind[n]
    # Murray's law with the exponent measured in lungs [Huang et al., J Appl Physiol 81(5), 1996], about 2.3 to 3.
    radius = 0.55 * tips_behind ** (1 / 2.6)
    return [(nodes[parent[n]], nodes[n], float(radius[n])) for n in range(1, len(nodes))]


def _tubes(branches: list[Branch]) -> tuple[Floats, Floats]:
    """Points (N, 3) that fill tubes, and the volume in mm³ (N,) that each stands for."""
    starts = np.array([branch[0] for branch in branches])
    ends = np.array([branch[1] for branch in branches])
    radii = np.array([branch[2] for branch in branches])
    length = np.linalg.norm(ends - starts, axis=1)
    direction = (ends - starts) / np.maximum(length, 1e-9)[:, None]
    side = np.cross(direction, np.where(np.abs(direction[:, :1]) < 0.8, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(direction, side)
    slabs = np.maximum(1, np.ceil(length)).astype(int)
    spots = np.maximum(1, np.ceil(np.pi * radii**2)).astype(int)
    count = slabs * spots
    owner = np.repeat(np.arange(len(branches)), count)
    rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    slab, spot = rank // spots[owner], rank % spots[owner]
    # A sunflower in each slab, turned from slab to slab, covers the disc evenly.
    radius = radii[owner] * np.sqrt((spot + 0.5) / spots[owner])
    turn = (spot + 0.37 * slab) * np.pi * (3 - np.sqrt(5))
    points = (
        starts[owner]
        + direction[owner] * ((slab + 0.5) / slabs[owner] * length[owner])[:, None]
        + side[owner] * (radius * np.cos(turn))[:, None]
        + other[owner] * (radius * np.sin(turn))[:, None]
    )
    return points, (np.pi * radii**2 * length / count)[owner]


def _inside_nodule(nodule: Nodule, points: Floats, seed: int) -> Any:
    """Which of the points (N, 3) lie in a nodule; a spiculated one has up to 14 rays."""
    offset = points - np.array(nodule.centre)
    distance, radius = np.linalg.norm(offset, axis=1), nodule.diameter_mm / 2
    if not nodule.spiculated:
        return distance <= radius
    rng = np.random.default_rng([seed, 4])
    rays = rng.normal(size=(14, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    towards = offset @ rays.T / np.maximum(distance, 1e-9)[:, None]
    reach = np.max(np.exp((towards - 1) * 45) * rng.uniform(0.4, 1, 14), axis=1)
    return distance <= radius * (0.92 + 0.85 * reach)


def _pairs(values: Any) -> Any:
    """The mean of each two thin slices."""
    return 0.5 * (values[0::2] + values[1::2])


def _blur(hu: Any, sigma: float) -> Any:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(hu, (0, sigma, sigma), mode="nearest")
