"""Viewers of others, installed on request: NiiVue inside our page, OHIF beside it.

Nothing of them is in this package. ``sagittal viewer install`` fetches a version that is named here by its SHA-512 from the
npm registry, or takes a file; whatever the file is, only those bytes are unpacked.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from sagittal.errors import ConfigError, PackageError, ResourceError, nearest
from sagittal.guard.archive import MAX_ENTRIES, MAX_RATIO, MAX_RATIO_FREE

#: OHIF runs decoders in WebAssembly and workers, and writes styles into its elements; it may talk to this service only.
#: Loading a SEG it compiles functions from text, for which it needs 'unsafe-eval'; its files are those
#: of the known SHA-512, and no page of Sagittal's own has that right.
OHIF_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; "
    "manifest-src 'self'; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_MARK = "installed.json"
_CHUNK = 2**20


@dataclass(frozen=True)
class Package:
    """A version of a viewer that is known to work.

    Parameters
    ----------
    package : str
        Its name in the npm registry.
    version : str
    sha512 : str
        Of the package's file, base64 as npm writes it.
    licence : str
    size_mb : int
        Of what is unpacked.
    wanted : callable
        Whether a file of the package is kept, by its path below ``package/dist``.
    finish : callable
        What is done to the unpacked folder.
    """

    package: str
    version: str
    sha512: str
    licence: str
    size_mb: int
    wanted: Callable[[str], bool]
    finish: Callable[[Path], None] = field(default=lambda folder: None)

    @property
    def tarball(self) -> str:
        """Path of its file in a registry."""
        return f"{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"


@dataclass(frozen=True)
class Viewer:
    """A viewer that is installed.

    Parameters
    ----------
    name : str
    version : str
    folder : Path
    files : frozenset of str
        The only paths that are served.
    """

    name: str
    version: str
    folder: Path
    files: frozenset[str]

    def file(self, name: str) -> Path | None:
        """Where a file lies; ``None`` where it is none of the viewer's."""
        return self.folder / name if name in self.files else None


def viewers_folder(data: Path) -> Path:
    """Where viewers are installed, beside the archive of a service.

    >>> viewers_folder(Path("sagittal-data")).as_posix()
    'sagittal-data/viewers'
    """
    return data / "viewers"


def find_viewers(folder: Path) -> Mapping[str, Viewer]:
    """The viewers that are installed, by name; one whose mark cannot be read counts as not installed."""
    found = {}
    for name in PACKAGES:
        mark = folder / name / _MARK
        try:
            status = mark.stat()
        except OSError:
            continue
        key = (str(mark), status.st_mtime_ns, status.st_ino)
        if _seen.get(name, (None, None))[0] != key:
            _seen[name] = (key, _read_mark(name, mark))
        viewer = _seen[name][1]
        if viewer is not None:
            found[name] = viewer
    return found


_seen: dict[str, tuple[tuple[str, int, int] | None, Viewer | None]] = {}


def _read_mark(name: str, mark: Path) -> Viewer | None:
    try:
        values = json.loads(mark.read_text(encoding="utf-8"))
        return Viewer(name, str(values["version"]), mark.parent, frozenset(map(str, values["files"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def install_viewer(
    name: str, folder: Path, *, fetch: Callable[[Package, Path], None], say: Callable[[str], None] = lambda text: None
) -> Viewer:
    """Install a viewer; one of the same name that is there is replaced once the new one is whole.

    Parameters
    ----------
    name : str
        A key of :data:`PACKAGES`.
    folder : Path
        As :func:`viewers_folder` gives it.
    fetch : callable
        Writes the package's file to a path; see :mod:`sagittal.serve.viewer_fetch`.
    say : callable

    Raises
    ------
    ConfigError
        If there is no such viewer.
    PackageError
        If the file is not the one that is named here, or cannot be unpacked.
    ResourceError
        If the disk refuses.
    """
    if name not in PACKAGES:
        raise ConfigError(f"there is no viewer '{name}'. {nearest(name, PACKAGES)}")
    package = PACKAGES[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder) as place:
            file = Path(place) / "package.tgz"
            fetch(package, file)
            check_package(file, package)
            say(f"{package.package} {package.version} is whole: its SHA-512 is the one that is known")
            fresh = Path(place) / name
            unpack(file, fresh, package.wanted)
            package.finish(fresh)
            files = sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())
            mark = {"package": package.package, "version": package.version, "sha512": package.sha512, "files": files}
            (fresh / _MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")
            old = Path(place) / "old"
            if (folder / name).exists():
                os.replace(folder / name, old)
            os.replace(fresh, folder / name)
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(f"the viewer could not be written: {error.strerror or type(error).__name__}") from error
    viewer = find_viewers(folder).get(name)
    if viewer is None:
        raise ResourceError("the viewer was written and cannot be read back")
    return viewer


def remove_viewer(name: str, folder: Path) -> bool:
    """Remove a viewer; gives whether it was there.

    Raises
    ------
    ConfigError
        If there is no viewer of that name.
    ResourceError
        If the disk refuses.
    """
    if name not in PACKAGES:
        raise ConfigError(f"there is no viewer '{name}'. {nearest(name, PACKAGES)}")
    if not (folder / name).is_dir():
        return False
    try:
        shutil.rmtree(folder / name)
    except OSError as error:
        raise ResourceError(f"the viewer could not be removed: {error.strerror or type(error).__name__}") from error
    return True


def check_package(file: Path, package: Package) -> None:
    """Refuse a file that is not, byte for byte, the one that is named here.

    Raises
    ------
    PackageError
    """
    digest = hashlib.sha512()
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    found = base64.b64encode(digest.digest()).decode()
    if found != package.sha512:
        raise PackageError(
            f"the file is not {package.package} {package.version}: its SHA-512 is {found[:16]}..., expected "
            f"{package.sha512[:16]}.... Nothing was unpacked; get that version from the npm registry."
        )


def unpack(file: Path, folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Unpack what is wanted below ``package/dist`` of an npm package; gives the paths.

    The sizes that the archive declares are not believed: bytes are counted as they come.

    Raises
    ------
    PackageError
        If the archive is damaged, holds a name that leads elsewhere, a link or a device among what is wanted, too many
        entries, or more bytes than an archive of its size may.
    """
    most = MAX_RATIO_FREE + MAX_RATIO * file.stat().st_size
    kept: list[str] = []
    try:
        with (
            gzip.open(file) as stream,
            tarfile.open(fileobj=cast(IO[bytes], _Counted(stream, most)), mode="r|") as archive,
        ):
            for number, entry in enumerate(archive, start=1):
                if number > MAX_ENTRIES:
                    raise PackageError(f"the package has more than {MAX_ENTRIES:,} entries: refused")
                parts = entry.name.split("/")
                if any(part in {"", ".", ".."} or "\\" in part or ":" in part or "\0" in part for part in parts):
                    raise PackageError(f"the package's entry {number} has a name that leads elsewhere: refused")
                name = "/".join(parts[2:])
                if parts[:2] != ["package", "dist"] or not name or entry.isdir() or not wanted(name):
                    continue
                if not entry.isreg():
                    raise PackageError(f"the package's entry {number} is a link or a device: refused")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(entry)
                if content is None:
                    raise PackageError(f"the package's entry {number} holds nothing: damaged")
                with target.open("xb") as out:
                    shutil.copyfileobj(content, out, _CHUNK)
                kept.append(name)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, FileExistsError) as error:
        raise PackageError(f"the package is damaged ({type(error).__name__})") from error
    if not kept:
        raise PackageError("the package holds nothing of a viewer")
    return kept


class _Counted:
    """A stream that ends in an error where more comes out of it than may."""

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self._stream, self._left, self._most = stream, most, most

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        piece = self._stream.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise PackageError(
                f"the package unpacks to more than {self._most:,} bytes: refused as a decompression bomb"
            )
        return piece


# What is done with each ---------------------------------------------------------------------------------------------


def _ohif_wants(name: str) -> bool:
    """What OHIF needs for DICOMweb: not its AI models, source maps, service worker, or ways in by other accounts."""
    if name.startswith(("ort/", "customizations/", "dicom-microscopy-viewer/")) or name.endswith(".map"):
        return False
    return name not in {
        "google.js", "oidc-client.min.js", "silent-refresh.html", "sw.js", "init-service-worker.js", "polyfill.min.js",
        "es6-shim.min.js", "_headers", "_redirects", "serve.json", "app-config.js",
    }  # fmt: skip


#: One source of data, this service; none that an address can name (CVE-2026-12473), no lists, no accounts.
OHIF_CONFIG = """\
// Written by `sagittal viewer install ohif`: one source of data, the DICOMweb of the same service.
window.config = {
  name: "sagittal",
  routerBasename: "/ohif",
  extensions: [],
  modes: [],
  customizationService: {},
  showStudyList: false,
  maxNumberOfWebWorkers: 3,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: "never" },
  showErrorDetails: "production",
  defaultDataSourceName: "sagittal",
  dataSources: [
    {
      namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
      sourceName: "sagittal",
      configuration: {
        friendlyName: "Sagittal",
        name: "sagittal",
        qidoRoot: "/dicom-web",
        wadoRoot: "/dicom-web",
        wadoUriRoot: "/dicom-web",
        qidoSupportsIncludeField: false,
        supportsReject: false,
        supportsStow: false,
        imageRendering: "wadors",
        thumbnailRendering: "wadors",
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        dicomUploadEnabled: false,
        singlepart: "bulkdata,video,pdf",
        bulkDataURI: { enabled: true, relativeResolution: "studies" },
        omitQuotationForMultipartRequest: true,
      },
    },
  ],
};
"""
_PARTS_FROM = b'__webpack_require__.p = "/";'
_SCRIPT = re.compile(r"<script(?P<attributes>[^>]*)>(?P<body>.*?)</script>", re.DOTALL)


def _finish_ohif(folder: Path) -> None:
    """Let OHIF live under ``/ohif/``: its page without scripts inside, its configuration ours."""
    page = folder / "index.html"
    text = page.read_text(encoding="utf-8")
    inline: list[str] = []

    def move(match: re.Match[str]) -> str:
        if "src=" in match["attributes"]:
            return "" if "init-service-worker" in match["attributes"] else match[0]
        inline.append(match["body"].replace('PUBLIC_URL="/"', 'PUBLIC_URL="/ohif/"'))
        return '<script src="/ohif/start.js"></script>' if len(inline) == 1 else ""

    text = _SCRIPT.sub(move, text)
    text = re.sub(r'(?P<name>\b(?:src|href|content))="/(?!ohif/|/)', r'\g<name>="/ohif/', text)
    page.write_text(text, encoding="utf-8")
    for bundle in folder.glob("*.js"):  # where each bundle and worker loads its parts from
        source = bundle.read_bytes()
        if _PARTS_FROM in source:
            bundle.write_bytes(source.replace(_PARTS_FROM, _PARTS_FROM.replace(b'"/"', b'"/ohif/"')))
    (folder / "start.js").write_text(";\n".join(inline) + ";\n", encoding="utf-8")
    (folder / "app-config.js").write_text(OHIF_CONFIG, encoding="utf-8")


#: The versions that are known to work with this service.
PACKAGES: Mapping[str, Package] = {
    "niivue": Package(
        package="@niivue/niivue",
        version="0.69.0",
        sha512="YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA==",
        licence="BSD-2-Clause",
        size_mb=3,
        wanted=lambda name: name == "index.js",  # index.min.js of this version does not load
    ),
    "ohif": Package(
        package="@ohif/app",
        version="3.13.2",
        sha512="WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==",
        licence="MIT",
        size_mb=60,
        wanted=_ohif_wants,
        finish=_finish_ohif,
    ),
}
