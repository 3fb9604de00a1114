"""A hospital on one machine, for the benchmarks and tests of the whole service: the service and Orthanc as processes of
their own, a sender that remembers what was acknowledged, and programs that look.

Everything listens on loopback at ports of its own and lives below one folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
import dicom_peer as dp
from tiny import Instance


def free_port() -> int:
    """A port that nobody has at the moment; not of those that the system gives to whoever connects."""
    while True:
        port = random.SystemRandom().randint(12_000, 31_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(look: Callable[[], Any], seconds: float, what: str, every_s: float = 0.05) -> Any:
    """The first true value of `look`.

    Raises
    ------
    TimeoutError
        If there is none in time.
    """
    due = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > due:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every_s)


def write_toml(tables: Mapping[str, Any]) -> str:
    """Tables, and lists of tables, as TOML."""
    lines: list[str] = []

    def value(one: Any) -> str:
        if isinstance(one, Mapping):
            return "{" + ", ".join(f"{key} = {value(inner)}" for key, inner in one.items()) + "}"
        if isinstance(one, (list, tuple)):
            return "[" + ", ".join(value(inner) for inner in one) + "]"
        return json.dumps(str(one) if isinstance(one, Path) else one)

    for name, content in tables.items():
        for table in content if isinstance(content, list) else [content]:
            lines.append(f"[[{name}]]" if isinstance(content, list) else f"[{name}]")
            lines += [f"{key} = {value(one)}" for key, one in table.items()]
            lines.append("")
    return "\n".join(lines)


@dataclass
class Service:
    """``sagittal serve`` as a process, in a process group of its own.

    Parameters
    ----------
    folder : Path
    tables : mapping
        Of its TOML file, beside those that are set here; ``server`` and ``dicom`` are laid over.
    before : str
        Python that its process runs first, such as another clock.
    port, dicom_port : int
        Of the web and of DICOM.
    """

    folder: Path
    tables: Mapping[str, Any]
    before: str = ""
    port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    token: str = ""
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.data = Path(self.tables.get("server", {}).get("data", self.folder / "data"))
        given = dict(self.tables)
        tables: dict[str, Any] = {
            "server": {"port": self.port, "data": self.data, "stop": "10s", **given.pop("server", {})},
            "dicom": {"port": self.dicom_port, **given.pop("dicom", {})},
            "completeness": {"silence": "1s", **given.pop("completeness", {})},
            "limits": {"disk_reserve": "1 MB", **given.pop("limits", {})},
            **given,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "sagittal.toml"
        self.config.write_text(write_toml(tables), encoding="utf-8")
        self.log = self.folder / "service.log"
        self.database = self.data / "sagittal.db"

    def admit(self, name: str = "ada", role: str = "administrator") -> str:
        """A user with a token of hers, made before the service starts; the token is used from then on."""
        from sagittal.database.connect import Database
        from sagittal.protect.tokens import make_token
        from sagittal.protect.users import add_user

        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = Database.open(f"sqlite:///{self.database}")
        try:
            self.token = make_token(db, add_user(db, name, role).id, "benchmark")[0]
        finally:
            db.close()
        return self.token

    def start(self, wait_s: float = 90.0) -> Service:
        """Start it, and wait until it says that it serves.

        Raises
        ------
        RuntimeError
            If it ends before.
        """
        told = self.launch()
        assert self.process is not None
        due = time.monotonic() + wait_s
        while time.monotonic() < due:
            with contextlib.suppress(queue.Empty):
                line = told.get(timeout=0.1)
                if line.startswith("DICOM node"):
                    return self
                continue
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
        self.kill()
        raise RuntimeError("the service did not start in time")

    def launch(self) -> queue.Queue[str]:
        """Start it without waiting; the lines that it prints."""
        program = f"{self.before}\nimport sys\nfrom sagittal.cli.main import run\nsys.exit(run())"
        command = [sys.executable, "-W", "ignore", "-c", program, "serve", "--config", str(self.config)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True, cwd=self.folder
            )
        told: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=_pass_on, args=(self.process.stdout, told), daemon=True)
        self._reader.start()
        return told

    def kill(self) -> None:
        """End it and its children at once, as a loss of power would."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)
        if self.process.stdout is not None:
            self._reader.join(20)
            self.process.stdout.close()
        self.process = None

    def stop(self, wait_s: float = 40.0) -> int:
        """End it in order; its exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(wait_s)
        finally:
            self.kill()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # Looking

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Any:
        """Ask its web port; JSON where it answers so, else bytes.

        Raises
        ------
        urllib.error.HTTPError
            If it refuses.
        """
        given = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=body,
            headers=given,
            method=method or ("POST" if body else "GET"),
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of its database, which is only read."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as db:
            return db.execute(statement, values).fetchall()

    def events(self) -> dict[str, dict[str, Any]]:
        """What the administrator's page lists, also what is over: code -> the latest."""
        found = self.call("/api/events?over=true&limit=500")["events"]
        return {one["code"]: one for one in reversed(found)}

    def settled(self) -> bool:
        """Whether nothing is left to be done."""
        left = self.rows("select count(*) from jobs where state in ('waiting', 'leased')")[0][0]
        open_series = self.rows("select count(*) from series where complete_at is null")[0][0]
        return not left and not open_series


def _pass_on(stream: Any, told: queue.Queue[str]) -> None:
    for line in stream:
        told.put(line)


# Orthanc ---------------------------------------------------------------------------------------------------------------

#: Sends each study on when nothing came for a while; not what came back from there, which would go round for ever.
ROUTE = """
function OnStableStudy(id, tags, metadata)
  if tags['StudyDescription'] == 'not routed' then return end
  for _, one in pairs(ParseJson(RestApiGet('/studies/' .. id .. '/series', false))) do
    if one['MainDicomTags']['Manufacturer'] == 'Sagittal' then return end
  end
  RestApiPost('/modalities/sagittal/store', id, false)
end
"""


def find_orthanc() -> tuple[str, str]:
    """The program and its plugin for DICOMweb; empty where they are not installed."""
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    plugin = next((p for p in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")), None)
    return program or "", str(plugin or "")


@dataclass
class Orthanc:
    """A PACS that knows the service, and sends it studies where it is told to."""

    folder: Path
    sagittal_port: int = field(default_factory=free_port)
    route: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.dicom, self.http = free_port(), free_port()

    def destination(self, name: str = "pacs", **more: Any) -> dict[str, Any]:
        """It as a ``[[destination]]`` of the service."""
        place = {"host": "127.0.0.1", "port": self.dicom, "ae_title": "ORTHANC"}
        return {"name": name, "kind": "dicom", **place, "confirm": True, **more}

    def start(self) -> Orthanc:
        """Start it, and wait until it answers."""
        program, plugin = find_orthanc()
        self.folder.mkdir(parents=True, exist_ok=True)
        script = self.folder / "route.lua"
        script.write_text(ROUTE)
        settings = {
            "Name": "benchmark",
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": True,
            "DicomModalities": {"sagittal": ["SAGITTAL", "127.0.0.1", self.sagittal_port]},
            "LuaScripts": [str(script)] if self.route else [],
            "StableAge": 1,
            "Plugins": [plugin] if plugin else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
            "OverwriteInstances": False,
            "DicomAssociationCloseDelay": 1,
        }
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(settings))
        with (self.folder / "orthanc.log").open("a") as log:
            self.process = subprocess.Popen(
                [program, "--verbose", str(config)], stdout=log, stderr=log, env=os.environ | {"TCP_NODELAY": "1"}
            )
        until(self._answers, 30, "Orthanc answers")
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.call("/system")
            with dp.Peer(self.dicom) as peer:
                return peer.associate(dp.context(1, dp.VERIFICATION), called="ORTHANC")
        return False

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            finally:
                self.process.kill()
            self.process = None

    def __enter__(self) -> Orthanc:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, path: str, body: Any = None) -> Any:
        """Ask its web port: JSON, or bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data),
            timeout=60,
        ) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content

    def take(self, instances: Sequence[Instance]) -> None:
        """Give it images, as a modality would."""
        for one in instances:
            self.call("/instances", one.file)

    def objects(self, kind: str = "", study: str = "") -> dict[str, str]:
        """What it holds of a modality and a study: SOP instance UID -> its own name for it."""
        asked = {key: value for key, value in (("Modality", kind), ("StudyInstanceUID", study)) if value}
        query = {"Level": "Instance", "Expand": True, "Query": asked}
        return {one["MainDicomTags"]["SOPInstanceUID"]: one["ID"] for one in self.call("/tools/find", query)}

    def fetch(self, kind: str, study: str, folder: Path) -> list[Path]:
        """The files of a modality and a study, as it gives them out."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for uid, name in sorted(self.objects(kind, study).items()):
            paths.append(folder / f"{kind.lower()}-{uid[-12:]}.dcm")
            paths[-1].write_bytes(self.call(f"/instances/{name}/file"))
        return paths


# Sending ---------------------------------------------------------------------------------------------------------------


class Sender:
    """Sends studies over some associations, knows what was acknowledged, and sends the rest again until all of it is.

    Parameters
    ----------
    port : int
    studies : sequence of sequences of Instance
        Each goes over one association, in its order.
    associations : int
    pace : callable () -> bool
        Whether one more may be sent now.
    """

    def __init__(
        self,
        port: int,
        studies: Sequence[Sequence[Instance]],
        *,
        associations: int = 4,
        pace: Callable[[], bool] = lambda: True,
    ) -> None:
        self.port, self.pace = port, pace
        self.left = [[one for study in studies[n::associations] for one in study] for n in range(associations)]
        self.acknowledged: dict[str, Instance] = {}
        self.refused: dict[int, int] = {}
        self.broken = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(part,), daemon=True) for part in self.left]

    def start(self) -> Sender:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    @property
    def done(self) -> bool:
        """Whether all was acknowledged."""
        return not any(self.left)

    def stop(self) -> None:
        """Give up what is left."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _send(self, part: list[Instance]) -> None:
        while part and not self._stop.is_set():
            try:
                with dp.Peer(self.port, timeout_s=60.0) as peer:
                    if not peer.associate(dp.context(1, dp.CT, (dp.EXPLICIT,)), calling="SENDER"):
                        raise ConnectionError("refused")
                    self._send_all(peer, part)
            except (OSError, ConnectionError, KeyError):
                self.broken += 1
                self._stop.wait(0.1)

    def _send_all(self, peer: dp.Peer, part: list[Instance]) -> None:
        while part and not self._stop.is_set():
            if not self.pace():
                self._stop.wait(0.01)
                continue
            one = part[0]
            status = peer.store(1, one.dataset, one.uid)
            if status != 0:
                self.refused[status] = self.refused.get(status, 0) + 1
                self._stop.wait(0.2)
                continue
            self.acknowledged[one.uid] = one
            part.pop(0)
        peer.release()


def send_all(port: int, instances: Sequence[Instance], *, sop_class: str = dp.CT) -> list[int]:
    """Send objects over one association; the statuses of the answers."""
    with dp.Peer(port, timeout_s=60.0) as peer:
        if not peer.associate(dp.context(1, sop_class, (dp.EXPLICIT,)), calling="SENDER"):
            raise ConnectionError("the service refuses the association")
        found = [peer.store(1, one.dataset, one.uid, sop_class=sop_class) for one in instances]
        peer.release()
    return found


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own in memory, at a folder.

    Raises
    ------
    PermissionError
        If this user may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        raise PermissionError("only root mounts a disk of its own in memory")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
