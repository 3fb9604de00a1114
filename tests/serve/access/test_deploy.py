"""The example files work: configurations are valid, and a real Orthanc routes by them to the service."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import httpx
import pydicom
from pydicom.data import get_testdata_file
from sqlalchemy import select

from sagittal.database.schema import instances
from sagittal.serve.config import read_config
from sagittal.serve.service import Service, start_service

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("name", ["sagittal.toml", "compose.toml"])
def test_example_configuration_is_valid_as_it_is_and_with_its_models(
    name: str, write_text: Callable[..., Path]
) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    read_config(write_text(name, text))
    whole = re.sub(r"^# (\[\[|\w+ = )", r"\1", text, flags=re.M)
    config = read_config(write_text(f"whole-{name}", whole))
    assert config.model[0].to == (config.destinations[0].name,)
    assert config.dicom.peers[0].ae_title == "ORTHANC"


def test_containers_know_each_other_by_the_same_addresses() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    place = {name: one["networks"]["clinic"]["ipv4_address"] for name, one in services.items()}
    config = read_config(DEPLOY / "compose.toml")
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text(encoding="utf-8"))
    assert config.server.host == config.dicom_host == place["sagittal"]
    assert config.server.trusted_proxies == (place["proxy"],)
    assert [peer.address for peer in config.dicom.peers] == [place["orthanc"]]
    assert config.destination[0]["host"] == place["orthanc"]
    modality = orthanc["DicomModalities"]["sagittal"]
    assert (modality["AET"], modality["Host"], modality["Port"]) == (
        config.dicom.ae_title,
        place["sagittal"],
        config.dicom.port,
    )
    assert orthanc["DicomAet"] == config.dicom.peers[0].ae_title == config.destination[0]["ae_title"]
    assert f"http://{place['sagittal']}:{config.server.port}/health/ready" in str(services["sagittal"]["healthcheck"])


def test_blocks_of_the_page_are_valid_configurations(write_text: Callable[..., Path]) -> None:
    blocks = [
        block
        for page in ("serving.md", "access.md")
        for block in re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)
    ]
    assert len(blocks) > 4
    for number, block in enumerate(blocks):
        read_config(write_text(f"{number}.toml", block))


def test_every_key_of_the_configuration_is_on_the_page() -> None:
    from dataclasses import fields

    from sagittal.serve import config

    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    missing = [
        f"{table}.{one.name}"
        for table in (
            "Server",
            "Dicom",
            "Limits",
            "Completeness",
            "Access",
            "Page",
            "MetricsAccess",
            "Oidc",
            "Integrity",
            "Watch",
        )
        for one in fields(getattr(config, table))
        if f"`{re.sub('_(s|bytes)$', '', one.name)}`" not in page
    ]
    assert missing == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[[int], tuple[int, int]]]:
    """Starts Orthanc by the example's files; gives its HTTP and DICOM ports."""
    program = shutil.which("Orthanc")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("CI lacks Orthanc: add it to .ci/apt.txt")
        pytest.skip("Orthanc is not installed: apt install orthanc")
    running: list[subprocess.Popen[bytes]] = []

    def start(sagittal_port: int) -> tuple[int, int]:
        settings = json.loads((DEPLOY / "orthanc.json").read_text(encoding="utf-8"))
        http, dicom = free_port(), free_port()
        settings |= {"HttpPort": http, "DicomPort": dicom, "StorageDirectory": str(tmp_path / "pacs"), "StableAge": 1}
        settings |= {
            "IndexDirectory": str(tmp_path / "pacs"),
            "LuaScripts": [str(DEPLOY / "routing.lua")],
            "RemoteAccessAllowed": False,
        }
        settings["DicomModalities"]["sagittal"] |= {"Host": "127.0.0.1", "Port": sagittal_port}
        (tmp_path / "orthanc.json").write_text(json.dumps(settings))
        with (tmp_path / "orthanc.log").open("wb") as log:
            running.append(subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log))
        for _ in range(100):
            try:
                httpx.get(f"http://127.0.0.1:{http}/system", trust_env=False).raise_for_status()
                return http, dicom
            except httpx.HTTPError:
                time.sleep(0.1)
        pytest.fail((tmp_path / "orthanc.log").read_text()[-2000:])

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


def make_file(path: Path, uid: str, **fields: str) -> bytes:
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
    header.SeriesInstanceUID = f"{uid}.1"
    for name, value in fields.items():
        setattr(header, name, value)
    header.save_as(path)
    return path.read_bytes()


def test_orthanc_routes_images_to_the_service_and_not_its_results(
    orthanc: Callable[[int], tuple[int, int]], make_service: Callable[..., Service], tmp_path: Path
) -> None:
    port = free_port()
    service = make_service({"dicom.port": port, "dicom.peers": [{"ae_title": "ORTHANC", "address": "127.0.0.1"}]})
    start_service(service)
    http, _ = orthanc(port)
    sent = {
        "1.2.826.0.1.7.1": {},
        "1.2.826.0.1.7.2": {"Manufacturer": "Sagittal"},
        "1.2.826.0.1.7.3": {"Modality": "SR"},
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{http}", trust_env=False) as client:
        assert client.post("/modalities/sagittal/echo", json={}).status_code == 200
        for uid, fields in sent.items():
            client.post("/instances", content=make_file(tmp_path / "one.dcm", uid, **fields)).raise_for_status()
        found: list[str] = []
        for _ in range(120):
            with service.db.read() as c:
                found = list(c.execute(select(instances.c.sop_instance_uid)).scalars())
            stable = all(client.get(f"/series/{one}").json()["IsStable"] for one in client.get("/series").json())
            if found and stable:
                break
            time.sleep(0.1)
        time.sleep(0.5)
    with service.db.read() as c:
        found = list(c.execute(select(instances.c.sop_instance_uid)).scalars())
    assert found == ["1.2.826.0.1.7.1"]
