"""A few hundred malformed units against the DICOM node, the same each time; ``fuzz/pdu.py`` sends thousands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from sagittal.archive.archive import Archive
from sagittal.node.dicom_node import DicomNode
from sagittal.node.upper_layer import WireLimits

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
import pdu as fuzz_pdu  # noqa: E402

sys.path.remove(str(FOLDER))


def test_malformed_units_are_refused_and_the_node_goes_on(start: Callable[..., DicomNode], archive: Archive) -> None:
    node = start(WireLimits(artim_s=0.3, pdu_s=0.3, idle_s=0.5))
    told = fuzz_pdu.run(250, 100, 11, node, fuzz_pdu.make_dataset())
    assert sum(told["last answer by type of unit"].values()) == 250
    assert {3, 7} <= set(told["last answer by type of unit"])
    assert not list((archive.folder / "incoming").iterdir())
