"""The pages over the real service: what a reader signs in to, sees and corrects is what the archive holds and keeps."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Open = Callable[..., Any]
PASSWORD = "a calm dark reading room"
NASTY = "<script>window.hacked()</script>^Anna"


@pytest.fixture(scope="module")
def clinic() -> Any:
    """How other tests of the service make slices and run it."""
    pytest.importorskip("fastapi")
    path = Path(__file__).parents[1] / "web" / "conftest.py"
    spec = importlib.util.spec_from_file_location("pages_clinic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def real(clinic: Any, fake: Any, tmp_path: Path) -> Iterator[Any]:
    """A service with a tilted CT of a hostile name, a model's mask of it, and a reader with a password."""
    import sqlalchemy as sa

    from sagittal.database.schema import objects, results, series, studies
    from sagittal.formats.dicom import read_dicom_series
    from sagittal.protect.users import add_user
    from sagittal.serve.config import read_config
    from sagittal.serve.service import open_service
    from sagittal.write.nifti import write_nifti

    flags = {"server.data": str(tmp_path / "data"), "limits.disk_reserve": "1 MiB", "dicom.port": 0}
    service = open_service(read_config(flags=flags))
    going = clinic._run(service)
    running = next(going)
    add_user(service.db, "dr.reader", "reader", password=PASSWORD)
    rng = np.random.default_rng(5)
    slices = [
        clinic.make_slice(number=n, name=NASTY, pixels=(rng.normal(0, 30, (40, 32)) + 20 * n).astype(np.int16))
        for n in range(1, 11)
    ]
    receipts = running.add(*slices)
    with service.db.read() as c:
        paths = [
            service.archive.folder / row for (row,) in c.execute(sa.text("select path from instances order by number"))
        ]
    image = read_dicom_series(paths)
    mask = np.zeros(image.grid.shape, np.uint8)
    mask[10:20, 12:24, 4:7] = 1
    file = service.config.server.data / "mask.nii.gz"
    write_nifti(mask, image.grid, file)
    kept = service.archive.store_file(file.read_bytes(), ".nii.gz")
    study_id, series_id = receipts[0].study_id, receipts[0].series_id
    finding = {
        "kind": "mask",
        "decision": ["lesion"],
        "structures": [{"name": "lesion", "index": 1, "colour": "#56b4e9", "measurements": {"volume_ml": 0.4}}],
        "shape": list(image.grid.shape),
        "affine_lps": np.asarray(image.grid.affine).tolist(),
    }
    with service.db.write() as c:
        c.execute(sa.update(series).values(complete_at=time.time(), revision=1))
        c.execute(
            sa.update(studies).values(
                status="answered", finding="lesion: 0.4 ml", confidence=0.9, answered_at=time.time()
            )
        )
        result_id = c.execute(
            sa.insert(results)
            .values(
                study_id=study_id, model="lesions", version="1.0.0", checksum="1" * 64, inputs="2" * 64, series=[series_id],
                state="answered", summary="lesion: 0.4 ml", confidence=0.9, finding=finding, created_at=time.time(),
            )
            .returning(results.c.id)
        ).scalar_one()  # fmt: skip
        c.execute(
            sa.insert(objects).values(
                result_id=result_id,
                kind="mask",
                media_type="application/gzip",
                path=kept.path,
                sha256=kept.sha256,
                size=kept.size,
            )
        )
    running.study_id, running.mask, running.grid, running.study_uid = (
        study_id,
        mask,
        image.grid,
        slices[0].StudyInstanceUID,
    )
    fake.address = running.url  # where `open_page` goes
    yield running
    next(going, None)
    service.stop()


@pytest.fixture(autouse=True)
def _address_of_the_fake(running: Any) -> Iterator[None]:
    kept = running.address
    yield
    running.address = kept


def sign_in(open_page: Open, path: str) -> Any:
    """Through the page for it, as a reader comes in."""
    page = open_page(path)
    page.wait_for_url("**/signin*")
    page.locator("input[name=name]").fill("dr.reader")
    page.locator("input[name=password]").fill(PASSWORD)
    page.keyboard.press("Enter")
    return page


def test_a_reader_signs_in_finds_the_study_and_corrects_its_mask(open_page: Open, real: Any) -> None:
    import sqlalchemy as sa

    from sagittal.database.schema import audit, reviews

    page = sign_in(open_page, "/")
    row = page.locator("#rows tr").first
    row.wait_for()
    assert "<script>window.hacked()</script>, Anna" in row.inner_text()
    assert "lesion: 0.4 ml" in row.inner_text()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.locator("#on-mask-0").wait_for()
    assert page.locator("script:not([src])").count() == 0
    page.keyboard.press("c")
    page.locator("#brush").wait_for()
    slice_, depth = (int(one) for one in page.locator(".pane-axial .top-left").inner_text().split("/"))
    # On the screen the first voxel of the mask's lower corner: computed here from the affine, not by the page.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(real.grid.affine)
    codes = nib.aff2axcodes(affine)
    across, down = (next(n for n, code in enumerate(codes) if code in pair) for pair in ("RL", "AP"))
    through = 3 - across - down
    shape, mm = real.grid.shape, np.asarray(real.grid.spacing)
    box = page.locator(".pane-axial canvas").bounding_box()
    scale = min(box["width"] / (shape[across] * mm[across]), box["height"] / (shape[down] * mm[down]))
    wanted = [25, 30, 0]
    at = []
    for axis, against, size, low in ((across, "R", "width", "x"), (down, "A", "height", "y")):
        place = shape[axis] - 1 - wanted[axis] if codes[axis] == against else wanted[axis]
        start = box[low] + (box[size] - shape[axis] * mm[axis] * scale) / 2
        at.append(start + (place + 0.5) * mm[axis] * scale)
    page.locator("#brush-size").evaluate("node => { node.value = 1; node.dispatchEvent(new Event('input')); }")
    page.mouse.click(*at)
    page.locator("#undo:not([disabled])").wait_for()
    page.locator("#correction-reason").fill("one voxel more")
    page.locator("#save").click()
    page.locator(".history", has_text="one voxel more").wait_for()
    with real.service.db.read() as c:
        said = c.execute(sa.select(reviews)).mappings().one()
        actions = set(c.execute(sa.select(audit.c.action)).scalars())
    assert (said["verdict"], said["reason"]) == ("correct", "one voxel more")
    assert {"login", "query", "view", "review"} <= actions
    image = nib.load(real.service.archive.folder / said["correction"]["mask"]["path"])
    assert np.allclose(image.affine, affine, atol=1e-4)
    new = np.argwhere(np.asarray(image.dataobj) != real.mask)
    wanted[through] = depth - slice_ if codes[through] == "S" else slice_ - 1
    assert [25, 30, wanted[through]] in new.tolist()
    assert len(new) <= 9
    assert set(new[:, through]) == {wanted[through]}


def test_pages_hold_no_data_and_data_needs_a_name(open_page: Open, real: Any) -> None:
    import httpx

    with httpx.Client(base_url=real.url) as client:
        for path in ("/", f"/study/{real.study_id}", "/admin", "/agreement"):
            page = client.get(path)
            assert page.status_code == 200
            assert "Anna" not in page.text
            assert "'unsafe" not in page.headers["content-security-policy"]
            assert page.headers["x-content-type-options"] == "nosniff"
        for path in (
            "/api/studies",
            f"/api/studies/{real.study_id}",
            "/api/series/1/volume.nii.gz",
            "/api/results/1/mask.nii.gz",
            f"/open/ohif/{real.study_id}",
        ):
            assert client.get(path).status_code == 401


def test_ohif_is_opened_for_who_may_and_the_look_is_in_the_trail(open_page: Open, real: Any) -> None:
    import httpx
    import sqlalchemy as sa

    from sagittal.database.schema import audit

    with httpx.Client(base_url=real.url, headers=real.headers("reader")) as client:
        assert client.get(f"/open/ohif/{real.study_id}").status_code == 404  # it is not installed
        folder = real.service.config.server.data / "viewers" / "ohif"
        folder.mkdir(parents=True)
        (folder / "index.html").write_text("<!doctype html>")
        (folder / "installed.json").write_text('{"version": "3", "files": ["index.html"]}')
        answer = client.get(f"/open/ohif/{real.study_id}")
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/ohif/viewer?StudyInstanceUIDs={real.study_uid}"
        assert client.get("/open/ohif/4711").status_code == 404
        shown = client.get(answer.headers["location"])
        assert shown.status_code == 200
        assert "connect-src 'self' blob: data:;" in shown.headers["content-security-policy"]
        for name in ("installed.json", "../niivue/index.js", "app.js", "..%2f..%2fsagittal.db"):
            assert client.get(f"/ohif/{name}").status_code == 404
    with real.service.db.read() as c:
        looks = c.execute(sa.select(audit.c.study_id).where(audit.c.action == "view")).scalars().all()
    assert looks == [real.study_id]
