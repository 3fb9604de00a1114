"""DICOM as a client: verify a node, store in it, find and fetch studies, ask it to commit itself to keeping them."""

from sagittal.deliver.dicom_association import quiet
from sagittal.deliver.dicom_commitment import CommitmentReport, Commitments, read_report, request_commitment
from sagittal.deliver.dicom_fetch import Fetched, FoundStudy, Retrieved, find_studies, get_study, move_study
from sagittal.deliver.dicom_store import deliver_dicom, echo, store

__all__ = [
    "CommitmentReport",
    "Commitments",
    "Fetched",
    "FoundStudy",
    "Retrieved",
    "deliver_dicom",
    "echo",
    "find_studies",
    "get_study",
    "move_study",
    "quiet",
    "read_report",
    "request_commitment",
    "store",
]
