"""Where a viewer's package comes from: a file that one has, npm, or the registry that npm is set to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from sagittal.errors import ConfigError, ReadError, ResourceError
from sagittal.serve.viewer import Package

#: npm's own default.
REGISTRY = "https://registry.npmjs.org/"
#: Bytes of the largest package, with room.
MOST_BYTES = 256 * 2**20
_TIMEOUT_S = 600.0


def from_file(file: Path) -> Callable[[Package, Path], None]:
    """Take the package from a file that was brought here, for machines without a way out.

    Raises
    ------
    ReadError
        When it is taken, if there is no such file or it is too large.
    """

    def fetch(package: Package, target: Path) -> None:
        if not file.is_file():
            raise ReadError(
                f"{file.name}: there is no such file. Get it elsewhere with: npm pack {package.package}@{package.version}"
            )
        if file.stat().st_size > MOST_BYTES:
            raise ReadError(f"{file.name}: larger than any viewer's package")
        shutil.copyfile(file, target)

    return fetch


def from_npm(
    registry: str | None = None, *, environment: Mapping[str, str], home: Path
) -> Callable[[Package, Path], None]:
    """Fetch by npm where it is installed, which knows the site's proxy, certificates and registry; else from the registry.

    Parameters
    ----------
    registry : str, optional
        Instead of the one that npm is set to.
    environment : mapping
        Variables of the process.
    home : Path
        Where ``.npmrc`` is looked for.
    """

    def fetch(package: Package, target: Path) -> None:
        npm = shutil.which("npm", path=environment.get("PATH"))
        if npm is not None:
            _by_npm(npm, package, target, registry)
        else:
            download((registry or npm_registry(environment, home)).rstrip("/") + "/" + package.tarball, target)

    return fetch


def _by_npm(npm: str, package: Package, target: Path, registry: str | None) -> None:
    asked = [
        npm,
        "pack",
        f"{package.package}@{package.version}",
        "--ignore-scripts",
        "--pack-destination",
        str(target.parent),
    ]
    if registry:
        asked += ["--registry", check_registry(registry)]
    try:
        done = subprocess.run(  # noqa: S603  (no shell, fixed arguments)
            asked, cwd=target.parent, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResourceError(f"npm could not fetch {package.package}: {type(error).__name__}") from error
    made = sorted(target.parent.glob("*.tgz"))
    if done.returncode != 0 or len(made) != 1:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        raise ResourceError(
            f"npm could not fetch {package.package} {package.version} ({last or 'it gave no reason'}). Where there is no way "
            f"out, fetch it elsewhere with 'npm pack {package.package}@{package.version}' and give it with --file."
        )
    os.replace(made[0], target)


def npm_registry(environment: Mapping[str, str], home: Path) -> str:
    """The registry that npm would use: its variable, its file in the home folder, its default.

    >>> npm_registry({"NPM_CONFIG_REGISTRY": "https://npm.hospital.example/"}, Path("/nowhere"))
    'https://npm.hospital.example/'
    >>> npm_registry({}, Path("/nowhere")) == REGISTRY
    True
    """
    for key, value in environment.items():
        if key.lower() == "npm_config_registry" and value:
            return check_registry(value)
    try:
        text = (home / ".npmrc").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.findall(r"^\s*registry\s*=\s*(\S+)\s*$", text, re.MULTILINE)
    return check_registry(found[-1]) if found else REGISTRY


def check_registry(address: str) -> str:
    """The address of a registry, if it is one.

    Raises
    ------
    ConfigError

    >>> check_registry("https://npm.hospital.example")
    'https://npm.hospital.example'
    """
    if not re.fullmatch(r"https?://[\w.:\[\]-]+(/[\w./~%-]*)?", address):
        raise ConfigError("--registry is the http(s) address of an npm registry, without name and password")
    return address


def download(address: str, target: Path) -> None:
    """Write what an address gives to a file; its size is counted as it comes.

    Raises
    ------
    ResourceError
        If it does not answer, or gives more than any package has.
    """
    import httpx

    left = MOST_BYTES
    try:
        with (
            httpx.stream("GET", address, follow_redirects=True, timeout=60.0) as answer,
            target.open("wb") as out,
        ):
            answer.raise_for_status()
            for piece in answer.iter_raw():
                left -= len(piece)
                if left < 0:
                    raise ResourceError("the registry sends more than any viewer's package has: stopped")
                out.write(piece)
    except httpx.HTTPError as error:
        raise ResourceError(
            f"the npm registry could not be reached ({type(error).__name__}). Where there is no way out, fetch the package "
            "elsewhere and give it with --file."
        ) from error
