"""Draw ``docs/assets/result-page.png``: the page of a result for a synthetic study, with the nodule that was drawn into it."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sagittal.anatomy import Patient, Scan, draw_chest, place_nodules
from sagittal.case import Case
from sagittal.labels import LabelScheme
from sagittal.phantom import write_series
from sagittal.prediction import Detections, Prediction
from sagittal.read.sources import series_source
from sagittal.truth import Boxes
from sagittal.write.dicom_sc import make_dicom_sc
from sagittal.write.dicom_sr import source_of
from sagittal.write.equipment import ModelFacts, Stamp, derive_uids, made_at

OUT = Path(__file__).resolve().parent / "assets" / "result-page.png"
FACTS = ModelFacts(
    name="nodules-synthetic",
    version="1",
    checksum="5f" * 32,
    question="Where are lung nodules? (trained on synthetic studies)",
    intended_use={
        "modality": "CT",
        "body_part": "CHEST",
        "population": "synthetic adults",
        "exclusions": "real patients",
    },
    evidence=("none: this page shows the layout; its finding is drawn, not found",),
)


def main() -> None:
    """Draw it."""
    patient = Patient(anatomy=41, age=58, sex="F", fat_mm=12, size=0.97)
    scan = Scan(pixels=256, slice_mm=2.5, kernel="standard", dose_mgy=4.0, noise=3)
    nodules = place_nodules(patient, scan, 2, np.random.default_rng(5))
    with tempfile.TemporaryDirectory() as folder:
        write_series(draw_chest(patient, scan, nodules), Path(folder), patient, scan, number=1)
        case = Case(
            "synthetic", "synthetic", {"image": series_source("synthetic", sorted(Path(folder).rglob("*.dcm")))}
        )
        image = case.image()
        corners = []
        for nodule in nodules:
            middle = np.linalg.inv(np.asarray(image.grid.affine)) @ [*nodule.centre, 1.0]
            half = nodule.diameter_mm / 2 / np.asarray(image.grid.spacing)
            corners.append([middle[:3] - half - 1, middle[:3] + half + 1])
        found = Detections(
            Boxes(np.array(corners), [0] * len(corners)), np.array([0.93, 0.71]), image.grid, np.ones(2, bool)
        )
        answer = Prediction(
            "synthetic", LabelScheme("objects", ("lung nodule",)), found, ("lung nodule",), np.zeros(0), model="nodules"
        )
        stamp = Stamp(derive_uids("picture"), made_at(answer), FACTS)
        made = make_dicom_sc(answer, source_of(answer, case, "the page"), case=case, image=image, stamp=stamp)
    page = Image.fromarray(made.pixel_array).resize((614, 869), Image.Resampling.LANCZOS).quantize(96)
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    OUT.write_bytes(stream.getvalue())


if __name__ == "__main__":
    main()
