"""Destinations of plain values: complete, checked, unknown keys refused with the nearest name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sagittal.deliver.destinations import (
    DicomDestination,
    FolderDestination,
    MllpDestination,
    StowDestination,
    Tls,
    WebhookDestination,
    parse_destination,
    parse_pacs,
)
from sagittal.errors import ConfigError

DICOM = {"name": "pacs", "kind": "dicom", "host": "pacs.example.org", "port": 104, "ae_title": "PACS"}
STOW = {"name": "web", "kind": "stow", "url": "https://pacs.example.org/dicom-web"}
HOOK = {"name": "hook", "kind": "webhook", "url": "https://hooks.example.org/results"}
MLLP = {"name": "his", "kind": "mllp", "host": "his.example.org", "port": 2575}
FOLDER = {"name": "share", "kind": "folder", "path": "results"}


def test_each_kind_is_parsed() -> None:
    assert isinstance(parse_destination(DICOM), DicomDestination)
    assert parse_destination(DICOM).sends == ("seg", "rtstruct", "sr", "sc", "ko")
    assert isinstance(parse_destination(STOW), StowDestination)
    hook = parse_destination({**HOOK, "secret_file": "key", "sends": ["json", "fhir"]}, folder=Path("/etc/sagittal"))
    assert isinstance(hook, WebhookDestination)
    assert (hook.secret_file, hook.sends) == (Path("/etc/sagittal/key"), ("json", "fhir"))
    mllp = parse_destination({**MLLP, "charset": "gb18030", "answer_s": 5})
    assert isinstance(mllp, MllpDestination)
    assert (mllp.answer_s, type(mllp.answer_s)) == (5.0, float)
    share = parse_destination(FOLDER, folder=Path("/data"))
    assert isinstance(share, FolderDestination)
    assert share.path == Path("/data/results")
    pacs = parse_pacs({"name": "pacs", "host": "10.0.0.5", "port": 104, "ae_title": "PACS"})
    assert (pacs.calling_ae_title, pacs.secured) == ("SAGITTAL", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**DICOM, "kind": "dcm"}, "unknown kind 'dcm'. Did you mean 'dicom'?"),
        ({**DICOM, "ae_titel": "X"}, "unknown key 'ae_titel'. Did you mean 'ae_title'?"),
        ({**DICOM, "port": "104"}, "port must be of type int, not str"),
        ({**DICOM, "port": True}, "port must be of type int, not bool"),
        ({**DICOM, "port": 0}, "port must be 1 to 65535, not 0"),
        ({**DICOM, "ae_title": "A" * 17}, "ae_title must be 1 to 16"),
        ({**DICOM, "ae_title": "A\\B"}, "ae_title must be 1 to 16"),
        ({**DICOM, "ae_title": "   "}, "ae_title must be 1 to 16"),
        ({**DICOM, "host": "a b"}, "host must be a name or an address"),
        ({**DICOM, "sends": ["json"]}, "'json' is no DICOM object"),
        ({**DICOM, "sends": ["segs"]}, "unknown kind of result 'segs'. Did you mean 'seg'?"),
        ({**DICOM, "sends": "seg"}, "sends must be a list of texts"),
        ({**DICOM, "key": "k.pem"}, "a key needs its certificate"),
        ({**DICOM, "connect_s": 0}, "connect_s must be more than 0"),
        ({**DICOM, "name": "../x"}, "a destination's name has"),
        ({key: value for key, value in DICOM.items() if key != "host"}, "'host' is missing"),
        ({**STOW, "url": "ftp://x"}, "the url must be like https://host/path"),
        ({**STOW, "url": "https://user:secret@x/"}, "the url must hold no user"),
        ({**STOW, "url": "https://x:99999/"}, "the url"),
        ({**STOW, "username": "me"}, "username and password_file belong together"),
        ({**HOOK, "url": "http://hooks.example.org/"}, "results hold patient data and go by https"),
        ({**HOOK, "allow": ["other.example.org"]}, "not among those in 'allow'"),
        ({**MLLP, "charset": "utf8"}, "unknown charset 'utf8'. Did you mean 'utf-8'?"),
        ({**MLLP, "sends": ["sr"]}, "MLLP carries 'hl7' alone"),
        ({**FOLDER, "path": 3}, "path must be a path, not int"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_destination(values)


def test_only_hosts_that_the_service_may_speak_to() -> None:
    assert parse_destination(DICOM, outbound=["pacs.example.org"]).name == "pacs"
    for values in (STOW, HOOK, MLLP):
        with pytest.raises(ConfigError, match="not among those that the service may speak to"):
            parse_destination(values, outbound=["elsewhere.example.org"])
    assert parse_destination(FOLDER, outbound=[]).name == "share"


def test_a_plain_hook_within_this_machine_or_a_closed_network() -> None:
    assert parse_destination({**HOOK, "url": "http://127.0.0.1:9000/"}).name == "hook"
    assert parse_destination({**HOOK, "url": "http://hooks.lan/", "allow_http": True}).name == "hook"


def test_a_certificate_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="a certificate or key cannot be read"):
        Tls(tmp_path / "ca.pem").context()


def test_the_pages_examples_are_destinations() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "results-in-the-clinic.md"
    blocks = re.findall(r"^```toml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    made = [one for block in blocks for one in tomllib.loads(block).get("destination", ())]
    assert {one["kind"] for one in made} == {"dicom", "stow", "folder", "webhook", "mllp"}
    assert [parse_destination(one).name for one in made] == [one["name"] for one in made]
