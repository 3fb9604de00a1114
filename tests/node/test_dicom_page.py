"""The page on the DICOM node says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagittal.node import dimse, pdu
from sagittal.node.callers import Peer
from sagittal.node.commitment import FIRST_WAIT_S, MOST_ATTEMPTS
from sagittal.node.commitment_data import MOST_ITEMS
from sagittal.node.negotiation import LOSSLESS, LOSSY, is_storage
from sagittal.node.store_status import STATUS_OF
from sagittal.node.upper_layer import WireLimits
from sagittal.serve.config import Dicom, read_config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "dicom-node.md").read_text(encoding="utf-8")


def test_page_lists_every_status() -> None:
    listed = {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) \|", PAGE, re.M)}
    used = {
        *STATUS_OF.values(),
        dimse.SUCCESS,
        dimse.OUT_OF_RESOURCES,
        dimse.PROCESSING_FAILURE,
        dimse.INVALID_INSTANCE,
    }
    reasons = {dimse.NO_SUCH_INSTANCE, dimse.CLASS_INSTANCE_CONFLICT}
    assert listed == used | {dimse.CLASS_NOT_SUPPORTED, dimse.UNRECOGNIZED_OPERATION} | reasons


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE, re.S))
def test_examples_are_taken_by_the_configuration(example: str, tmp_path: Path) -> None:
    path = tmp_path / "sagittal.toml"
    path.write_text(example, encoding="utf-8")
    options = read_config(path).dicom
    assert options.tls or options.peers[1] == Peer("PACS", "pacs.hospital.example", 104)


def test_page_states_the_limits() -> None:
    limits, options = WireLimits(), Dicom()
    assert f"{limits.most_pdu:,} bytes" in PAGE
    assert f"| ARTIM | {limits.artim_s:.0f} s" in PAGE
    assert f"| idle | {options.idle_s:.0f} s" in PAGE
    assert f"| one unit | {limits.pdu_s:.0f} s" in PAGE
    assert f"| one message | {limits.slowest / 1024:.0f} KiB/s" in PAGE
    assert f"| associations at once | {options.most_associations} " in PAGE
    assert f"| one object | {options.most_object_bytes / 2**30:.0f} GiB" in PAGE
    assert f"At most {MOST_ITEMS:,} objects" in PAGE
    assert f"tried {MOST_ATTEMPTS} times, after\n{FIRST_WAIT_S:.0f} s" in PAGE
    assert pdu.IMPLEMENTATION_CLASS_UID in PAGE


def test_every_transfer_syntax_of_pydicom_was_thought_of() -> None:
    """One that is neither accepted nor known to be refused is new: decide on it."""
    from pydicom._uid_dict import UID_dictionary

    known = {uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax"}
    root = "1.2.840.10008.1."
    refused = {root + end for end in ("2.1.99", "2.4.94", "2.4.95", "2.4.204", "2.4.205", "2.6.1", "2.6.2")}
    refused |= {root + end for end in ("2.7.1", "2.7.2", "2.7.3", "20")}
    assert known - LOSSLESS - LOSSY == refused
    assert not LOSSLESS & LOSSY


@pytest.mark.parametrize(
    "uid", ["1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.5.1.4.1.2.2.1", "1.2.3", ""]
)
def test_what_is_no_storage_class_is_not_stored(uid: str) -> None:
    assert not is_storage(uid)
