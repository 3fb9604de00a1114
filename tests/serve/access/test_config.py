"""The configuration: read from file, environment and flags, and everything wrong with it told at once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from sagittal.deliver.destinations import DicomPeer
from sagittal.errors import ConfigError
from sagittal.node.callers import Peer
from sagittal.serve import check as check_module
from sagittal.serve.check import check_config, refuse_exposure
from sagittal.serve.config import Config, read_config, to_values
from sagittal.serve.settings import Problems, read_table, seconds, size

Write = Callable[..., Path]

WHOLE = """
[server]
host = "10.1.2.3"
port = 443
data = "clinic"
tls_certificate = "tls/cert.pem"
tls_key = "tls/key.pem"
public_url = "https://ai.hospital.example"
language = "zh"

[dicom]
ae_title = "AI"
peers = [{ ae_title = "PACS", address = "10.1.2.0/24", port = 104 }, { ae_title = "CT1", address = "ct1.example" }]
most_object = "2 GiB"
idle_s = 30

[limits]
disk_reserve = "20 GB"
most_upload = 1000000

[completeness]
silence = "2m"
commitment = false

[access]
session_idle = "30m"

[[model]]
path = "models/chest"
role = "answers"
urgency = 1
results = ["seg", "sr"]
to = "pacs"

[[model.series]]
modality = "CT"
description = "lung"
thickness_mm = [0, 3]
prefer = "thinnest"

[[model]]
path = "/models/other"
role = "watches"

[[destination]]
name = "pacs"
kind = "dicom"
host = "10.1.2.9"
port = 104
ae_title = "PACS"

[[pacs]]
name = "archive"
ae_title = "PACS"
host = "10.1.2.9"
port = 104

[[watch]]
folder = "inbox"

[[retention]]
what = "originals"
keep = "90d"
when = "reviewed"

[oidc]
issuer = "https://login.hospital.example"
client_id = "sagittal"
roles = { radiologists = "reader" }
"""


def test_whole_file_is_read(write_text: Write, tmp_path: Path) -> None:
    config = read_config(write_text("etc/sagittal.toml", WHOLE))
    assert config.server.port == 443
    assert config.server.data == tmp_path / "etc" / "clinic"  # paths are those of the file
    assert config.server.tls_key == tmp_path / "etc" / "tls" / "key.pem"
    assert config.watch[0].folder == tmp_path / "etc" / "inbox"
    assert config.dicom.peers == (Peer("PACS", "10.1.2.0/24", 104), Peer("CT1", "ct1.example"))
    assert config.dicom.most_object_bytes == 2 * 2**30
    assert config.dicom.idle_s == 30
    assert config.limits.disk_reserve_bytes == 20 * 10**9
    assert config.limits.most_upload_bytes == 10**6
    assert config.completeness.silence_s == 120
    assert config.access.session_idle_s == 1800
    first, second = config.model
    assert first.path == str(tmp_path / "etc" / "models" / "chest")
    assert second.path == "/models/other"
    assert first.to == ("pacs",)
    assert first.series[0].modality == ("CT",)
    assert first.series[0].thickness_mm == (0.0, 3.0)
    assert config.pacs == (DicomPeer("archive", "10.1.2.9", 104, "PACS", calling_ae_title="AI"),)
    assert config.destinations[0].calling_ae_title == "AI"  # type: ignore[union-attr]
    assert config.retention[0].keep_s == 90 * 86400
    assert config.oidc.roles == {"radiologists": "reader"}


def test_nothing_has_to_be_configured() -> None:
    config = read_config()
    assert config == Config()
    assert config.server.is_local
    assert config.dicom.peers == ()
    assert not config.dicom.allow_unknown  # incident 2: nobody from outside may send
    assert config.server.database_url.startswith("sqlite:////")


def test_everything_wrong_is_told_at_once_with_its_place(write_text: Write) -> None:
    text = """
    [server]
    prot = 80
    language = "fr"
    [dicom]
    port = "many"
    most_object = "4 parsecs"
    peers = [{ ae_titel = "X", address = "1.2.3.4" }]
    [serverr]
    [completeness]
    silence = "soon"
    commitment = "yes"
    [[model]]
    name = "x"
    to = ["nowhere"]
    [[retention]]
    what = "everything"
    keep = "1d"
    """
    with pytest.raises(ConfigError) as wrong:
        read_config(write_text("sagittal.toml", text))
    told = str(wrong.value)
    for line in (
        "sagittal.toml: server.prot: unknown key. Did you mean 'port'?",
        "serverr: unknown key. Did you mean 'server'?",
        "dicom.port: expected a whole number, found 'many'",
        "dicom.most_object: expected a size such as '500 MB' or '4 GiB', found '4 parsecs'",
        "dicom.peers[1].ae_titel: unknown key. Did you mean 'ae_title'?",
        "dicom.peers[1].ae_title: is missing",
        "completeness.silence: expected a time such as '30s'",
        "completeness.commitment: expected true or false, found 'yes'",
        "model[1].path: is missing",
        "retention[1].what: 'everything' is none of those known",
    ):
        assert line in told
    assert told.startswith("10 things are wrong:")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[server]\nport = 70000', "server: port: 70000 is no port"),
        ('[server]\nport = true', "expected a whole number, found true"),
        ('[server]\ntls_key = "x"', "belong together"),
        ('[server]\npublic_url = "ai.example"', "expected https://NAME"),
        ('[server]\ntrusted_proxies = ["0.0.0.0/0"]', "trusts everyone"),
        ('[server]\ntrusted_proxies = ["proxy"]', "no address or network"),
        ('[dicom]\nae_title = "THIS TITLE IS TOO LONG"', "1 to 16"),
        ('[dicom]\nae_title = "A\\\\B"', "backslash"),
        ('[dicom]\ntls = true', "needs certificate and key"),
        ('[dicom]\nmutual = true', "needs tls = true and ca"),
        ('[metrics]\ntoken = "short"', "at least 16"),
        ('[oidc]\nissuer = "https://x.example"', "client_id is missing"),
        ('[oidc]\nissuer = "https://x.example"\nclient_id = "y"\nroles = { a = "boss" }', "unknown role 'boss'"),
        ('[oidc]\nissuer = "https://x.example"\nclient_id = "y"\nroles = { a = "reader" }', "needs server.public_url"),
        ('[[model]]\npath = "m"\nto = ["pcas"]\n[[destination]]\nname = "pacs"\nkind = "folder"\npath = "x"', "Did you mean 'pacs'"),
        ('[[model]]\npath = "m"\n[[model.series]]\ndescription = "("', "no regular expression"),
        ('[[model]]\npath = "m"\nrole = "answer"', "Did you mean 'answers'"),
        ('[[pacs]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 1\n[[pacs]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 1', "two have the name 'a'"),
        ('server = 5', "server: expected a table, found 5"),
        ('model = "m"', "model: expected a list"),
        ('[server\n', "is not TOML"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_with_the_reason(write_text: Write, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        read_config(write_text("sagittal.toml", text))
    assert reason in str(wrong.value)


def test_environment_stands_above_the_file_and_flags_above_both(write_text: Write) -> None:
    path = write_text("sagittal.toml", "[server]\nport = 1\nlanguage = 'zh'\n[dicom]\nport = 2\n")
    environment = {
        "SAGITTAL_SERVE__SERVER__PORT": "10",
        "SAGITTAL_SERVE__DICOM__AE_TITLE": "AI",
        "SAGITTAL_SERVE__DICOM__PEERS": '[{ ae_title = "A", address = "1.2.3.4" }]',
        "SAGITTAL_SERVE__LIMITS__MOST_UPLOAD": "2 GiB",
        "SAGITTAL_BUDGET": "1h",
    }
    config = read_config(path, environment=environment, flags={"server.port": 20, "dicom.port": None})
    assert (config.server.port, config.server.language) == (20, "zh")
    assert (config.dicom.port, config.dicom.ae_title) == (2, "AI")
    assert config.dicom.peers == (Peer("A", "1.2.3.4"),)
    assert config.limits.most_upload_bytes == 2 * 2**30
    with pytest.raises(ConfigError, match="SAGITTAL_SERVE__TABLE__KEY"):
        read_config(environment={"SAGITTAL_SERVE__PORT": "1"})


def test_models_of_the_command_line_answer_to_every_destination(write_text: Write) -> None:
    path = write_text("sagittal.toml", WHOLE)
    config = read_config(path, models=["runs/mine", "/models/other"])
    assert [(entry.path, entry.to) for entry in config.model][2:] == [("runs/mine", ("pacs",))]


def test_secrets_are_not_shown() -> None:
    shown = to_values(read_config(flags={"metrics.token": "a token of the counters"}))
    assert shown["metrics"]["token"] == "(set)"
    hidden = to_values(Config(destination=({"name": "x", "secret": "hush", "host": "h"},)))
    assert hidden["destination"] == [{"name": "x", "secret": "(set)", "host": "h"}]


@pytest.mark.parametrize("text", ["", "30", "s", "1x", "-5s", "1e3s", "nan", "1h-5m"])
def test_texts_that_are_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a time"):
        seconds(text)


@pytest.mark.parametrize("value", ["", "GiB", "-1", "1.2.3 GB", True, "1 GiB 3 MB", "nan"])
def test_values_that_are_no_size(value: object) -> None:
    with pytest.raises(ConfigError, match="expected a size"):
        size(value)


def test_table_of_a_dataclass_that_refuses_itself() -> None:
    @dataclass(frozen=True)
    class Odd:
        even: int = 0

        def __post_init__(self) -> None:
            if self.even % 2:
                raise ConfigError(f"{self.even} is odd")

    problems = Problems()
    assert read_table(Odd, {"even": 3}, "here", problems) is None
    assert problems == ["here: 3 is odd"]


# Before it starts -----------------------------------------------------------------------------------------------------


def findings(**flags: object) -> dict[str, str]:
    found = check_config(
        read_config(flags={"limits.disk_reserve": 0, **{key.replace("__", "."): one for key, one in flags.items()}}),
        reach=False,
    )
    return {one.where: f"{one.level}: {one.text}" for one in found}


def test_open_configuration_is_warned_of(tmp_path: Path) -> None:
    """Incident 2, the open PACS of 2019: 0.0.0.0, DICOM without TLS, unknown titles."""
    found = findings(server__host="0.0.0.0", server__data=str(tmp_path), dicom__allow_unknown=True)
    assert found["server.host"].startswith("warning: '0.0.0.0' listens on every network")
    assert found["dicom.tls"].startswith("warning")
    assert "everyone who reaches the port may send" in found["dicom.allow_unknown"]
    quiet = findings(server__data=str(tmp_path))
    assert set(quiet) == {"model"}


@pytest.mark.parametrize(
    ("flags", "administrators", "reason"),
    [
        ({"server.host": "0.0.0.0"}, 1, "tls_certificate"),
        ({"server.host": "::"}, 1, "tls_certificate"),
        ({"server.host": "10.0.0.5"}, 1, "trusted_proxies"),
        ({"server.host": "ai.hospital.example"}, 1, "127.0.0.1"),
        ({"server.host": "0.0.0.0", "server.trusted_proxies": ["10.0.0.1"]}, 0, "sagittal users add"),
    ],
)
def test_port_is_not_opened_to_strangers(flags: dict[str, object], administrators: int, reason: str) -> None:
    """CVE-2025-0896: remote access on, authentication off."""
    with pytest.raises(ConfigError) as refused:
        refuse_exposure(read_config(flags=flags), administrators)
    assert reason in str(refused.value)


def test_port_is_opened_with_proxy_and_administrator_or_to_this_machine() -> None:
    refuse_exposure(read_config(flags={"server.host": "10.0.0.5", "server.trusted_proxies": ["10.0.0.1"]}), 1)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        refuse_exposure(read_config(flags={"server.host": host}), 0)


def test_files_ports_and_peers_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_REACH_S", 0.5)
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
        free.close()
        config = read_config(
            flags={
                "server.port": taken.getsockname()[1],
                "server.data": str(tmp_path),
                "server.tls_certificate": str(tmp_path / "no.pem"),
                "server.tls_key": str(secret),
                "dicom.port": 0,
                "limits.disk_reserve": "1000000 TiB",
                "pacs": [{"name": "away", "ae_title": "P", "host": "127.0.0.1", "port": closed}],
                "watch": [{"folder": str(tmp_path / "nowhere")}],
            },
            models=[str(tmp_path / "no-model")],
        )
        found = [str(one) for one in check_config(config)]
    told = "\n".join(found)
    assert "error: server.port: 127.0.0.1 port" in told
    assert "error: server.tls_certificate" in told
    assert "error: limits.disk_reserve" in told
    assert "error: watch.folder" in told
    assert "error: model" in told
    assert "warning: pacs 'away': 127.0.0.1" in told
    assert "warning: server.tls_key" in told
    assert [line.split(":")[0] for line in found] == sorted(line.split(":")[0] for line in found)
