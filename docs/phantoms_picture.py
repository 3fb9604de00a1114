"""Draw ``docs/assets/phantoms.png``: slices of four synthetic studies in a lung window and, below, a soft tissue window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sagittal.anatomy import Patient, Scan, draw_chest, place_nodules

OUT = Path(__file__).resolve().parent / "assets" / "phantoms.png"


def window(hu: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Grey values of a window, uint8."""
    return np.clip((hu - centre + width / 2) / width * 255, 0, 255).astype(np.uint8)


def main() -> None:
    """Draw them."""
    columns = []
    for n, (sex, kernel, dose) in enumerate(
        [("M", "soft", 6.0), ("F", "standard", 4.0), ("M", "sharp", 1.5), ("F", "soft", 2.0)]
    ):
        patient = Patient(anatomy=40 + n, age=45 + 11 * n, sex=sex, fat_mm=9 + 4 * n, size=0.94 + 0.035 * n)
        scan = Scan(pixels=128, slice_mm=4.0, kernel=kernel, dose_mgy=dose, noise=n)
        nodules = place_nodules(patient, scan, 1 + n % 2, np.random.default_rng(n))
        hu = draw_chest(patient, scan, nodules).hu
        slices = [round(nodules[0].centre[2] / scan.slice_mm + (scan.slices - 1) / 2), scan.slices // 2 + 2]
        columns.append(np.vstack([window(hu[slices[0]], -600, 1500), window(hu[slices[1]], 40, 400)]))
    picture = Image.fromarray(np.hstack(columns))
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BICUBIC).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
