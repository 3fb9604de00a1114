"""What should never come, sent to the running service: each has a clear answer and an entry in a list, and harms nothing."""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest

import hospital
import tiny
from hospital import dp

MIB = 2**20


@pytest.fixture(scope="module")
def service(models: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hospital.Service]:
    """The service with a model, and limits that a test can reach."""
    tables = {
        "model": [{"path": models.outliner, "results": ["seg", "sr", "json"]}],
        "limits": {"most_upload": "16 MB", "most_unpacked": "64 MB"},
    }
    with hospital.Service(tmp_path_factory.mktemp("bad") / "service", tables) as made:
        made.admit()
        made.start()
        yield made
        assert made.call("/health/live") is not None
        said = made.log.read_text(encoding="utf-8")
        for secret in ("Phantom", "<script", "王", "张", "P0000", tiny.ROOT):
            assert secret not in said, secret
        assert "Traceback" not in said
        assert made.stop() == 0


def refusals(service: hospital.Service, code: str) -> list[dict[str, Any]]:
    """What the administrator's list says was not kept, with that code."""
    return [one for one in service.call("/api/refusals")["refusals"] if one["code"] == code]


def study_of(service: hospital.Service, number: int) -> dict[str, Any]:
    """The row of a study in the worklist."""
    found = service.call(f"/api/studies?text=A{number:06d}")["studies"]
    assert len(found) == 1
    row: dict[str, Any] = found[0]
    return row


def settled(service: hospital.Service, number: int) -> dict[str, Any]:
    """The row of a study after everything was done with it."""
    over = {"answered", "abstained", "refused", "failed", "no-model"}
    hospital.until(lambda: study_of(service, number)["status"] in over, 90, "the study is settled", 0.1)
    return study_of(service, number)


def resident(service: hospital.Service) -> int:
    """Bytes of memory that the service has taken at most."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def test_image_without_pixel_data_is_refused(service: hospital.Service) -> None:
    header = tiny.header_of(11, Rows=8, Columns=8, InstanceNumber=1, SOPInstanceUID=f"{tiny.ROOT}.11.1.1")
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    (status,) = hospital.send_all(service.dicom_port, [tiny.instance_of(header)])
    assert status & 0xF000 in {0xA000, 0xC000}
    (entry,) = refusals(service, "no-pixel-data")
    assert entry["source"] == "dicom SENDER"
    assert service.rows("select count(*) from instances where sop_instance_uid like '%.11.1.1'") == [(0,)]


def test_other_bytes_under_the_same_uid_are_kept_and_shown(service: hospital.Service) -> None:
    first = tiny.make_study(12, 8)
    assert set(hospital.send_all(service.dicom_port, first)) == {0}
    twin = pydicom.dcmread(io.BytesIO(first[3].file))
    twin.PixelData = bytes(len(twin.PixelData))
    (status,) = hospital.send_all(service.dicom_port, [tiny.instance_of(twin)])
    assert status == 0 or status & 0xF000 == 0xB000  # it is kept: success, or a warning
    (conflict,) = service.call("/api/conflicts")["conflicts"]
    assert conflict["study_id"] == study_of(service, 12)["id"]
    assert service.events()["conflict"]["over_at"] is None
    path = service.rows("select path from instances where sop_instance_uid = ?", first[3].uid)[0][0]
    kept = (service.data / "archive" / path).read_bytes()
    assert first[3].dataset in kept
    other = service.rows("select path from conflicts")[0][0]
    assert tiny.instance_of(twin).dataset in (service.data / "archive" / other).read_bytes()
    assert settled(service, 12)["status"] == "answered"


def test_series_of_mixed_patients_is_not_answered(service: hospital.Service) -> None:
    images = tiny.make_study(13, 8)[:4] + tiny.make_study(13, 8, PatientID="P999999", PatientName="Other^One")[4:]
    assert set(hospital.send_all(service.dicom_port, images)) == {0}
    row = settled(service, 13)
    assert row["status"] == "no-model"
    shown = service.call(f"/api/studies/{row['id']}")
    assert "patient" in shown["series"][0]["problem"]
    assert "patient" in shown["choices"][0]["reason"]
    assert shown["results"] == []
    assert "mixed-series" in service.events()


def test_study_that_no_model_is_for_says_so(service: hospital.Service) -> None:
    assert set(hospital.send_all(service.dicom_port, tiny.make_study(14, 4, Modality="MR"))) == {0}
    row = settled(service, 14)
    assert row["status"] == "no-model"
    (choice,) = service.call(f"/api/studies/{row['id']}")["choices"]
    assert choice["reason"] == "modality MR, the model was made for CT"
    assert choice["used"] is False


@pytest.mark.parametrize(
    ("number", "charset", "name"),
    [
        (21, "GB18030", "Wang^XiaoDong=王^小东"),
        (22, ["", "ISO 2022 IR 58"], "Zhang^XiaoDong=张^小东"),
        (23, "ISO_IR 192", "Müller^Jörg=王^小东=ワン^シャオ"),
    ],
)
def test_names_are_shown_as_they_were_written(
    service: hospital.Service, number: int, charset: str | list[str], name: str
) -> None:
    images = tiny.make_study(number, 4, SpecificCharacterSet=charset, PatientName=name)
    assert set(hospital.send_all(service.dicom_port, images)) == {0}
    assert study_of(service, number)["patient_name"] == name
    family = name.split("=")[1].split("^", maxsplit=1)[0]
    found = service.call(f"/api/studies?text={urllib.parse.quote(family)}")["studies"]
    assert number in {int(one["accession"][1:]) for one in found}
    (seen,) = service.call(f"/dicom-web/studies?AccessionNumber=A{number:06d}")
    assert seen["00100010"]["Value"][0]["Ideographic"] == name.split("=")[1]


def test_markup_in_a_name_stays_text(service: hospital.Service) -> None:
    name = "<script>alert(1)</script>^<img src=x onerror=alert(2)>"
    images = tiny.make_study(24, 4, PatientName=name, StudyDescription='"><svg onload=alert(3)>')
    assert set(hospital.send_all(service.dicom_port, images)) == {0}
    row = study_of(service, 24)
    assert (row["patient_name"], row["description"]) == (name, '"><svg onload=alert(3)>')
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.request("GET", "/api/studies?text=A000024", headers={"Authorization": f"Bearer {service.token}"})
    answer = connection.getresponse()
    assert answer.getheader("Content-Type", "").startswith("application/json")
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert "unsafe-inline" not in answer.getheader("Content-Security-Policy", "unsafe-inline").partition("style-src")[0]
    connection.close()


def test_zip_bomb_is_refused_without_memory(service: hospital.Service) -> None:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bomb,
        bomb.open("slice.dcm", "w") as one,
    ):
        for _ in range(256):
            one.write(bytes(MIB))
    before = resident(service)
    taken = service.call("/v1/predict", stream.getvalue(), headers={"Content-Type": "application/zip"})
    job = hospital.until(lambda: _over(service, taken["job"]), 60, "the upload is judged", 0.1)
    assert job["state"] == "failed"
    assert refusals(service, "zip-bomb")
    assert resident(service) - before < 64 * MIB


def _over(service: hospital.Service, number: int) -> dict[str, Any] | None:
    found: dict[str, Any] = service.call(f"/v1/jobs/{number}")
    return found if found["state"] in {"done", "failed"} else None


@pytest.mark.parametrize("path", ["/v1/predict", "/dicom-web/studies"])
def test_upload_of_4_gb_is_refused_as_it_is_declared(service: hospital.Service, path: str) -> None:
    before = resident(service)
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {service.token}")
    connection.putheader("Content-Type", "application/dicom")
    connection.putheader("Content-Length", str(4 * 2**30 + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())
    connection.close()
    assert resident(service) - before < 64 * MIB


@pytest.mark.parametrize("path", ["/v1/predict", "/dicom-web/studies"])
def test_endless_upload_is_cut_at_the_limit(service: hospital.Service, path: str) -> None:
    before, sent, status = resident(service), 0, 0
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {service.token}")
    connection.putheader("Content-Type", "application/dicom")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    piece = tiny.make_study(31, 4)[0].file.ljust(MIB, b"\0")
    try:
        while sent < 64 * MIB:
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent += len(piece)
    except OSError:  # it does not listen any more
        pass
    try:
        answer = connection.getresponse()
        status = answer.status
    except (OSError, http.client.HTTPException):
        pass  # the rest of what was sent reset the connection before the answer was read
    connection.close()
    assert status in {413, 0}
    assert sent < 48 * MIB
    assert resident(service) - before < 64 * MIB
    assert not list((service.data / "archive" / "incoming").glob("*.part"))
    uploads = service.data / "uploads"
    assert not uploads.exists() or not list(uploads.iterdir())


def test_unsupported_transfer_syntax_is_refused(service: hospital.Service) -> None:
    deflated = "1.2.840.10008.1.2.1.99"
    with dp.Peer(service.dicom_port) as peer:
        peer.associate(dp.context(1, dp.CT, ("1.2.3.4.5", deflated)), calling="SENDER")
        assert peer.accepted.get(1, (4, ""))[0] == 4  # transfer syntaxes not supported (PS3.8 table 9-18)
    header = pydicom.dcmread(io.BytesIO(tiny.make_study(32, 4)[0].file))
    header.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    stream = io.BytesIO()
    header.save_as(stream, enforce_file_format=True, implicit_vr=False, little_endian=True)
    with pytest.raises(urllib.error.HTTPError) as caught:
        service.call("/dicom-web/studies", stream.getvalue(), headers={"Content-Type": "application/dicom"})
    assert caught.value.code == 409
    with caught.value as answer:
        (item,) = json.loads(answer.read())["00081198"]["Value"]
    assert item["00081197"]["Value"] == [0xC122]
    assert refusals(service, "transfer-syntax")[0]["source"] == "stow"
