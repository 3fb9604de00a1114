"""The whole service with real peers: models that learn in seconds, the service as a process, validators of DICOM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import hospital  # noqa: E402
import tiny  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more threads than a shared machine has."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Packages: ``outliner`` outlines a bright block in a CT, ``classifier`` says whether there is one."""
    folder = tmp_path_factory.mktemp("tiny")
    return SimpleNamespace(
        outliner=tiny.save_outliner(folder / "outliner.sagittal"),
        classifier=tiny.save_classifier(folder / "classifier.sagittal"),
    )


def need(program: str, package: str) -> str:
    """The program; the test is skipped where it is missing, and fails so in CI."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is missing: apt-get install {package}")
        pytest.skip(f"{program} is not installed (Debian package {package})")
    return found


@pytest.fixture(scope="session")
def need_orthanc() -> None:
    """Orthanc with DICOMweb."""
    need("Orthanc", "orthanc")
    if not hospital.find_orthanc()[1]:
        if os.environ.get("CI"):
            pytest.fail("orthanc-dicomweb is missing: apt-get install orthanc-dicomweb")
        pytest.skip("orthanc-dicomweb is not installed")


@pytest.fixture(scope="session")
def errors_of() -> Callable[..., list[str]]:
    """Errors that a validator finds: ``errors_of("dciodvfy", path)``, ``errors_of("dcentvfy", *paths)``."""

    def check(program: str, *paths: Path) -> list[str]:
        tool = need(program, "dicom3tools")
        said = subprocess.run([tool, *map(str, paths)], capture_output=True, text=True, check=False)
        return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]

    return check
