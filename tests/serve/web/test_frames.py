"""Where frames lie in a file, and what is kept beside the archive of a series."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, RLELossless

from sagittal.deliver.destinations import parse_destination
from sagittal.errors import ReadError, ServeError
from sagittal.serve.frames import open_frames
from sagittal.serve.reach import reach
from sagittal.serve.series_cache import forget_series, kept_file, sweep_series


def _many(forge: Any, frames: list[bytes], **given: Any) -> Any:
    header = forge.slice(
        NumberOfFrames=len(frames), TransferSyntaxUID=JPEGLSLossless, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3"
    )
    header.PixelData = encapsulate(frames, **given)
    header["PixelData"].is_undefined_length = True
    return header


@pytest.mark.parametrize(
    ("given", "tables"),
    [
        ({"fragments_per_frame": 1}, True),
        ({"fragments_per_frame": 3}, True),
        ({"fragments_per_frame": 1, "has_bot": False}, False),
    ],
)
def test_fragments_are_joined_by_frame(forge: Any, tmp_path: Path, given: dict[str, Any], tables: bool) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.bytes(2 * int(n)) for n in rng.integers(40, 400, 7)]
    path = tmp_path / "x.dcm"
    path.write_bytes(forge.file(_many(forge, frames, **given)))
    index = open_frames(path)
    assert index.count == 7
    assert [index.stored(n) for n in range(7)] == frames
    with pytest.raises(IndexError):
        index.stored(7)


def test_frames_that_cannot_be_told_apart_are_refused(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(forge.file(_many(forge, [b"a" * 100] * 4, fragments_per_frame=2, has_bot=False)))
    with pytest.raises(ReadError, match="no table says"):
        open_frames(path)


@pytest.mark.parametrize("cut", [1, 9, 150, 900])
def test_files_that_are_cut_off_are_refused(forge: Any, tmp_path: Path, cut: int) -> None:
    whole = forge.file(_many(forge, [b"a" * 300] * 3))
    path = tmp_path / "x.dcm"
    path.write_bytes(whole[:-cut])
    with pytest.raises(ReadError):
        _read(path)


def test_pictures_without_pixels_are_refused(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(forge.file(forge.slice(PixelData=None)))
    with pytest.raises(ReadError, match="no pixel data"):
        open_frames(path)


def test_colours_and_signs_come_out_as_they_are(forge: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    colours = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    header = forge.slice(
        pixels=colours[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=1
    )
    header.PixelData = colours.transpose(2, 0, 1).tobytes()
    path = tmp_path / "x.dcm"
    path.write_bytes(forge.file(header))
    assert np.array_equal(open_frames(path).values(0), colours)
    pytest.importorskip("imagecodecs")
    signed = forge.slice()
    expected = signed.pixel_array
    signed.compress(RLELossless, generate_instance_uid=False)
    other = tmp_path / "y.dcm"
    other.write_bytes(forge.file(signed))
    assert np.array_equal(open_frames(other).values(0)[..., 0], expected)
    assert np.frombuffer(open_frames(other).decoded(0), "<i2").reshape(expected.shape).tolist() == expected.tolist()


def _read(path: Path) -> list[bytes]:
    index = open_frames(path)
    return [index.stored(n) for n in range(index.count)]


# What is kept of a series


def test_a_file_is_made_once_however_many_ask(tmp_path: Path) -> None:
    made: list[int] = []
    ready = threading.Barrier(8)

    def make(target: Path) -> None:
        made.append(1)
        target.write_bytes(b"whole")

    def ask() -> None:
        ready.wait()
        assert kept_file(tmp_path, 7, "volume-a.nii.gz", make).read_bytes() == b"whole"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    kept_file(tmp_path, 7, "metadata-x.jsonl", make)
    kept_file(tmp_path, 7, "volume-b.nii.gz", make)
    assert sorted(path.name for path in (tmp_path / "series-7").iterdir()) == ["metadata-x.jsonl", "volume-b.nii.gz"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(target: Path) -> None:
        target.write_bytes(b"half")
        raise ReadError("damaged")

    for _ in range(2):
        with pytest.raises(ReadError):
            kept_file(tmp_path, 7, "volume-a.nii.gz", make)
    assert list((tmp_path / "series-7").iterdir()) == []
    forget_series(tmp_path, [7])
    assert not (tmp_path / "series-7").exists()


def test_what_is_kept_of_series_that_are_gone_is_swept(make_service: Any, forge: Any, tmp_path: Path) -> None:
    service = make_service()
    with service.archive.receive("test") as incoming:
        incoming.write(forge.file(forge.slice()))
        receipt = incoming.finish()
    for number in (receipt.series_id, 99):
        (tmp_path / "cache" / f"series-{number}").mkdir(parents=True)
    assert sweep_series(service.db, tmp_path / "cache") == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"series-{receipt.series_id}"]
    assert sweep_series(service.db, tmp_path / "nowhere") == 0


# Destinations


def test_destinations_are_reached_or_say_why(tmp_path: Path) -> None:
    folder = parse_destination({"name": "share", "kind": "folder", "path": str(tmp_path)})
    assert reach(folder) == "the folder can be written to"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ServeError, match="cannot be written to"):
        reach(parse_destination({"name": "share", "kind": "folder", "path": str(tmp_path / "away")}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert (
            reach(parse_destination({"name": "his", "kind": "mllp", "host": "127.0.0.1", "port": port}))
            == "accepts connections"
        )
        hook = parse_destination({"name": "hook", "kind": "webhook", "url": f"http://127.0.0.1:{port}/x"})
        assert reach(hook) == "accepts connections"
    with pytest.raises(ServeError, match="no connection"):
        reach(parse_destination({"name": "his", "kind": "mllp", "host": "127.0.0.1", "port": port}))


def test_a_pacs_of_our_own_kind_answers_a_search(running: Any, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(running.tokens["machine"])
    values = {"name": "other", "kind": "stow", "url": f"{running.url}/dicom-web", "token_file": str(secret)}
    assert reach(parse_destination(values)) == "answered a search"
    secret.write_text("wrong")
    with pytest.raises(ServeError):
        reach(parse_destination(values))
