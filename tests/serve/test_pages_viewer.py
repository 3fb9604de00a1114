"""Viewers of others: only the bytes that are known are unpacked, and only what is listed is served."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagittal.errors import ConfigError, PackageError, ReadError, ResourceError
from sagittal.serve import viewer as module
from sagittal.serve.viewer import (
    OHIF_CONFIG,
    OHIF_POLICY,
    PACKAGES,
    Package,
    check_package,
    find_viewers,
    install_viewer,
    remove_viewer,
    unpack,
)
from sagittal.serve.viewer_fetch import check_registry, from_file, from_npm, npm_registry

INDEX = (
    '<!doctype html><html><head><script>console.time("x"),window.PUBLIC_URL="/"</script>'
    '<link rel="icon" href="/assets/favicon.ico"><script rel="preload" as="script" src="/app-config.js"></script>'
    '<script rel="preload" type="module" src="/init-service-worker.js"></script>'
    '<script>function f(n){return import(n)}window.PUBLIC_URL="/"</script><script defer src="/app.bundle.js"></script>'
    '<meta name="msapplication-config" content="/assets/x.xml"></head><body></body></html>'
)
OHIF = {
    "index.html": INDEX.encode(),
    "app.bundle.js": b'a;__webpack_require__.p = "/";b',
    "7.css": b"x",
    "app-config.js": b"window.config = {dataSources: 'everywhere'}",
    "google.js": b"",
    "sw.js": b"",
    "init-service-worker.js": b"",
    "ort/model.wasm": b"0",
    "app.bundle.js.map": b"{}",
}


def pack(
    path: Path,
    files: dict[str, bytes],
    *,
    prefix: str = "package/dist/",
    more: Callable[[tarfile.TarFile], None] | None = None,
) -> Path:
    """An npm package."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {
            "package/package.json": b"{}",
            **{prefix + name: data for name, data in files.items()},
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if more:
            more(archive)
    return path


def known(path: Path, name: str = "ohif") -> Package:
    """The package of a viewer, with the hash of another file."""
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return replace(PACKAGES[name], sha512=digest)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Install a made package as if it were the known one."""

    def run(files: dict[str, bytes], name: str = "ohif") -> Any:
        file = pack(tmp_path / "package.tgz", files)
        monkeypatch.setattr(module, "PACKAGES", {**PACKAGES, name: known(file, name)})
        return install_viewer(name, tmp_path / "viewers", fetch=from_file(file))

    return run


def test_the_known_versions_are_named_by_their_whole_hash() -> None:
    for package in PACKAGES.values():
        assert len(base64.b64decode(package.sha512)) == 64
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)
        assert package.licence in {"MIT", "BSD-2-Clause"}
    assert tuple(int(n) for n in PACKAGES["ohif"].version.split(".")) > (3, 12, 0)  # CVE-2026-12473


def test_ohif_is_installed_to_live_under_its_own_folder(install: Callable[..., Any], tmp_path: Path) -> None:
    made = install(OHIF)
    page = (made.folder / "index.html").read_text()
    assert "<script>" not in page
    assert re.findall(r'(?:src|href|content)="(/[^"]*)"', page) == [
        "/ohif/start.js", "/ohif/assets/favicon.ico", "/ohif/app-config.js", "/ohif/app.bundle.js", "/ohif/assets/x.xml",
    ]  # fmt: skip
    assert (made.folder / "app.bundle.js").read_bytes() == b'a;__webpack_require__.p = "/ohif/";b'
    assert 'PUBLIC_URL="/ohif/"' in (made.folder / "start.js").read_text()
    assert (made.folder / "app-config.js").read_text() == OHIF_CONFIG
    assert made.files == {"index.html", "app.bundle.js", "7.css", "app-config.js", "start.js"}
    assert find_viewers(tmp_path / "viewers")["ohif"].version == PACKAGES["ohif"].version


def test_ohif_can_ask_this_service_only() -> None:
    """CVE-2026-12473: a source of data that an address names would be sent the session."""
    assert "http" not in OHIF_CONFIG
    assert set(re.findall(r'(?:qido|wado|wadoUri)Root: "([^"]*)"', OHIF_CONFIG)) == {"/dicom-web"}
    sources = re.findall(r"dataSourcesModule\.(\w+)", OHIF_CONFIG)
    assert sources == ["dicomweb"]
    assert "dangerously" not in OHIF_CONFIG
    policy = dict(part.strip().split(" ", 1) for part in OHIF_POLICY.split(";"))
    assert policy["connect-src"] == "'self' blob: data:"
    assert policy["script-src"] == "'self' 'unsafe-eval' 'wasm-unsafe-eval'"  # clinic/test_ohif.py needs it
    assert policy["default-src"] == "'none'"


def test_another_file_than_the_known_one_is_refused(tmp_path: Path) -> None:
    file = pack(tmp_path / "package.tgz", OHIF)
    with pytest.raises(PackageError, match=r"not @ohif/app 3\.13\.2: its SHA-512"):
        install_viewer("ohif", tmp_path / "viewers", fetch=from_file(file))
    assert list((tmp_path / "viewers").iterdir()) == []


def test_a_failed_install_leaves_the_old_one_at_work(install: Callable[..., Any], tmp_path: Path) -> None:
    install(OHIF)
    with pytest.raises(PackageError, match="nothing of a viewer"):
        install({"sw.js": b""})
    assert find_viewers(tmp_path / "viewers")["ohif"].file("index.html") is not None
    assert [path.name for path in (tmp_path / "viewers").iterdir()] == ["ohif"]


def test_a_newer_one_takes_the_place_of_the_old_one(install: Callable[..., Any], tmp_path: Path) -> None:
    install(OHIF)
    install({**OHIF, "new.js": b"1"})
    assert find_viewers(tmp_path / "viewers")["ohif"].file("new.js") is not None


@pytest.mark.parametrize(
    "name", ["../../evil.js", "/etc/evil.js", "a/../../../evil.js", "..", "a\\..\\evil.js", "c:evil.js"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    file = pack(tmp_path / "package.tgz", {name: b"x", "index.html": b"y"})
    with pytest.raises(PackageError, match="leads elsewhere"):
        unpack(file, tmp_path / "out", lambda path: True)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    def add(archive: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo("package/dist/link.js")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)

    file = pack(tmp_path / "package.tgz", {"index.html": b"y"}, more=add)
    with pytest.raises(PackageError, match="link or a device"):
        unpack(file, tmp_path / "out", lambda path: True)


def test_a_file_over_another_is_refused(tmp_path: Path) -> None:
    def add(archive: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo("package/dist/index.html")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"z"))

    file = pack(tmp_path / "package.tgz", {"index.html": b"y"}, more=add)
    with pytest.raises(PackageError, match="damaged"):
        unpack(file, tmp_path / "out", lambda path: True)


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RATIO_FREE", 100_000)
    monkeypatch.setattr(module, "MAX_RATIO", 1)
    file = pack(tmp_path / "package.tgz", {"index.html": bytes(2_000_000)})
    with pytest.raises(PackageError, match="decompression bomb"):
        unpack(file, tmp_path / "out", lambda path: True)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 5)
    file = pack(tmp_path / "package.tgz", {f"{n}.js": b"" for n in range(9)})
    with pytest.raises(PackageError, match="more than 5 entries"):
        unpack(file, tmp_path / "out", lambda path: True)


@pytest.mark.parametrize("damage", ["cut", "text", "tar"])
def test_damaged_packages_are_refused(tmp_path: Path, damage: str) -> None:
    file = pack(tmp_path / "package.tgz", {"index.html": bytes(range(256)) * 400})
    whole = file.read_bytes()
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "text": b"<html>", "tar": gzip.compress(b"nothing" * 200)}[damage]
    )
    with pytest.raises(PackageError, match=r"damaged|nothing of a viewer"):
        unpack(file, tmp_path / "out", lambda path: True)


def test_only_listed_files_are_served(install: Callable[..., Any]) -> None:
    made = install(OHIF)
    (made.folder / "later.js").write_text("put here by somebody")
    for name in ("later.js", "installed.json", "../ohif/index.html", "/etc/passwd", "", "."):
        assert made.file(name) is None


def test_a_mark_that_cannot_be_read_is_no_viewer(tmp_path: Path) -> None:
    (tmp_path / "ohif").mkdir()
    for text in ("", "[]", '{"version": 1}', "\0"):
        (tmp_path / "ohif" / "installed.json").write_text(text)
        assert find_viewers(tmp_path) == {}


def test_a_viewer_can_be_removed(install: Callable[..., Any], tmp_path: Path) -> None:
    install(OHIF)
    assert remove_viewer("ohif", tmp_path / "viewers") is True
    assert remove_viewer("ohif", tmp_path / "viewers") is False
    assert find_viewers(tmp_path / "viewers") == {}
    with pytest.raises(ConfigError, match="Did you mean 'niivue'"):
        remove_viewer("nivue", tmp_path / "viewers")


def test_a_missing_file_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"npm pack @niivue/niivue@0\.69\.0"):
        from_file(tmp_path / "no.tgz")(PACKAGES["niivue"], tmp_path / "x")


def test_npm_is_asked_where_it_is_there(tmp_path: Path) -> None:
    """With its own registry, proxy and certificates; nothing of the package is run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(
        '#!/bin/sh\necho "$@" > "$7/asked.txt"\n[ "$1" = pack ] || exit 3\necho bytes > "$5/x.tgz"\n'.replace(
            "$7", "$5"
        )
    )
    npm.chmod(0o755)
    target = tmp_path / "in" / "package.tgz"
    target.parent.mkdir()
    from_npm("https://npm.example/", environment={"PATH": f"{folder}:/bin:/usr/bin"}, home=tmp_path)(
        PACKAGES["niivue"], target
    )
    assert target.read_text() == "bytes\n"
    asked = (target.parent / "asked.txt").read_text().split()
    assert asked[:3] == ["pack", "@niivue/niivue@0.69.0", "--ignore-scripts"]
    assert asked[-2:] == ["--registry", "https://npm.example/"]


def test_npm_that_fails_is_told_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text("#!/bin/sh\necho 'npm error network' >&2\nexit 1\n")
    (folder / "npm").chmod(0o755)
    with pytest.raises(ResourceError, match=r"network.*--file"):
        from_npm(environment={"PATH": str(folder)}, home=tmp_path)(PACKAGES["ohif"], tmp_path / "package.tgz")


def test_the_registry_is_the_one_of_npms_settings(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text(
        "fund=false\nregistry = https://npm.hospital.example/repo/\n//x/:_authToken=secret\n"
    )
    assert npm_registry({}, tmp_path) == "https://npm.hospital.example/repo/"
    assert npm_registry({"npm_config_registry": "https://other.example"}, tmp_path) == "https://other.example"
    with pytest.raises(ConfigError, match="without name and password"):
        check_registry("https://user:pass@npm.example/")
    with pytest.raises(ConfigError, match="http"):
        check_registry("file:///etc/passwd")


def test_the_file_is_hashed_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.tgz"
    file.write_bytes(b"abc")
    # SHA-512 of "abc", FIPS 180-4, appendix C.1.
    digest = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
    check_package(file, replace(PACKAGES["niivue"], sha512=base64.b64encode(bytes.fromhex(digest)).decode()))


def test_the_command_lists_what_is_installed(
    install: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sagittal.cli.viewer  # noqa: F401
    from sagittal.cli.main import main

    install(OHIF)
    assert main(["viewer", "list", "--data", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["installed"] for row in told["viewers"]} == {
        "niivue": None,
        "ohif": PACKAGES["ohif"].version,
    }
    assert main(["viewer", "instal", "ohif"]) == 2
    assert "Did you mean 'install'" in capsys.readouterr().err
