"""DICOMweb as dicomweb-client and OHIF use it, and as PS3.18 says."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from sagittal.errors import ReadError
from sagittal.serve.media_types import MediaRange, choose, parse_accept
from sagittal.serve.multipart import MultipartReader, PartBegin, PartData, PartEnd

RELATED = 'multipart/related; type="application/dicom"; boundary=b'
ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def message(*parts: bytes, boundary: str = "b") -> bytes:
    """A multipart message of DICOM files."""
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()


def parts_of(answer: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    """Parts of a multipart answer: header fields and bytes."""
    boundary = answer.headers["content-type"].partition("boundary=")[2]
    reader = MultipartReader(boundary)
    found: list[tuple[dict[str, str], bytes]] = []
    for event in reader.feed(answer.content):
        if isinstance(event, PartBegin):
            found.append((event.fields, b""))
        elif isinstance(event, PartData):
            found[-1] = (found[-1][0], found[-1][1] + event.data)
    reader.close()
    return found


@pytest.fixture
def client(running: Any) -> Any:
    """dicomweb-client with a token, unchanged."""
    dicomweb_client = pytest.importorskip("dicomweb_client")
    import requests

    session = requests.Session()
    session.headers.update(running.headers())
    return dicomweb_client.DICOMwebClient(f"{running.url}/dicom-web", session=session)


# Messages


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 10_000])
def test_multipart_is_read_in_any_pieces(cut: int) -> None:
    bodies = [b"\r\n--", b"", b"x" * 100 + b"\r\n--bb\r\n", b"\r\r\n--\r\n", bytes(range(256)) * 3]
    boundary = "bound"
    data = (
        b"preamble"
        + b"".join(b"\r\n--bound  \r\nContent-Type: a/b\r\nX: 1\r\n\r\n" + body for body in bodies)
        + b"\r\n--bound--\r\nepilogue"
    )
    reader = MultipartReader(boundary)
    found: list[bytes] = []
    ended = 0
    for start in range(0, len(data), cut):
        for event in reader.feed(data[start : start + cut]):
            if isinstance(event, PartBegin):
                assert event.fields == {"content-type": "a/b", "x": "1"}
                found.append(b"")
            elif isinstance(event, PartData):
                found[-1] += event.data
            elif isinstance(event, PartEnd):
                ended += 1
    reader.close()
    assert found == bodies
    assert ended == len(bodies)


def test_multipart_that_is_damaged_is_refused() -> None:
    with pytest.raises(ReadError, match="1 to 70"):
        MultipartReader("x" * 71)
    reader = MultipartReader("x")
    list(reader.feed(b"--x\r\nA: b\r\n\r\nhalf a part"))
    with pytest.raises(ReadError, match="last boundary is missing"):
        reader.close()
    with pytest.raises(ReadError, match="more than 8192 bytes"):
        list(MultipartReader("x").feed(b"--x\r\n" + b"A: " + b"b" * 9000))
    with pytest.raises(ReadError, match="more parts"):
        list(MultipartReader("x", most_parts=2).feed(message(b"1", b"2", b"3", boundary="x")))
    with pytest.raises(ReadError, match="something else follows"):
        list(MultipartReader("x").feed(b"--xy\r\n\r\n\r\n"))


def test_accept_is_negotiated_by_quality_and_detail() -> None:
    ranges = parse_accept(
        'multipart/related; type="application/dicom"; transfer-syntax=*;q=0.3, application/dicom;q=0.5, */*;q=0'
    )
    assert ranges == (
        MediaRange("application/dicom", False, "", 0.5, {}),
        MediaRange("application/dicom", True, "*", 0.3, {"type": "application/dicom", "transfer-syntax": "*"}),
    )
    assert choose(parse_accept("image/png, image/*;q=0.2"), ["image/jpeg", "image/png"]) == "image/png"
    assert choose(parse_accept("text/html"), ["image/jpeg"]) is None
    assert choose(parse_accept(None), ["image/jpeg"]) == "image/jpeg"
    # OHIF leaves the quotes out, though a slash needs them.
    assert (
        parse_accept("multipart/related; type=application/octet-stream; transfer-syntax=*")[0].name
        == "application/octet-stream"
    )
    assert parse_accept(",;,=" * 5000) == ()


# Storing


def test_stow_keeps_every_byte_and_says_what_it_kept(running: Any, forge: Any) -> None:
    files = [forge.file(header) for header in forge.series(5)]
    answer = httpx.post(
        f"{running.url}/dicom-web/studies",
        content=message(*files),
        headers={**running.headers("machine"), "content-type": RELATED},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    kept = pydicom.Dataset.from_json(answer.json())
    assert [item.ReferencedSOPInstanceUID for item in kept.ReferencedSOPSequence] == [
        f"{forge.uid}.1.1.{n}" for n in range(1, 6)
    ]
    assert "FailedSOPSequence" not in kept
    assert kept.RetrieveURL == f"{running.url}/dicom-web/studies/{forge.uid}.1"
    whole = httpx.get(f"{running.url}/dicom-web/studies/{forge.uid}.1", headers={**running.headers(), "accept": ANY})
    assert sorted(body for _, body in parts_of(whole)) == sorted(files)


def test_stow_of_the_same_again_is_the_same(running: Any, forge: Any) -> None:
    header = forge.slice()
    for _ in range(2):
        answer = httpx.post(
            f"{running.url}/dicom-web/studies/{forge.uid}.1",
            content=forge.file(header),
            headers={**running.headers(), "content-type": "application/dicom"},
        )
        assert answer.status_code == 200
    header.PixelData = bytes(len(header.PixelData))
    other = httpx.post(
        f"{running.url}/dicom-web/studies",
        content=forge.file(header),
        headers={**running.headers(), "content-type": "application/dicom"},
    )
    assert other.status_code == 202  # other bytes under the same UID: kept beside the first, and said
    assert other.json()["00081199"]["Value"][0]["00081196"]["Value"] == [0xB000]


def test_stow_tells_good_from_bad_parts(running: Any, forge: Any) -> None:
    good = forge.file(forge.slice())
    bad = b"\0" * 128 + b"DICM" + b"nothing of use" * 20
    other = forge.slice(study=2)
    blind = forge.file(forge.slice(number=2, PixelData=None))
    url = f"{running.url}/dicom-web/studies/{forge.uid}.1"
    answer = httpx.post(
        url,
        content=message(good, bad, forge.file(other), blind),
        headers={**running.headers(), "content-type": RELATED},
    )
    assert answer.status_code == 202
    kept = pydicom.Dataset.from_json(answer.json())
    assert len(kept.ReferencedSOPSequence) == 1
    assert [item.FailureReason for item in kept.FailedSOPSequence] == [0xC122, 0xA900, 0xA900]
    assert kept.FailedSOPSequence[1].ReferencedSOPInstanceUID == other.SOPInstanceUID
    assert httpx.get(f"{running.url}/dicom-web/studies/{forge.uid}.2", headers=running.headers()).status_code == 404
    nothing = httpx.post(url, content=message(bad), headers={**running.headers(), "content-type": RELATED})
    assert nothing.status_code == 409


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("application/dicom+json", b"[]", 415),
        ('multipart/related; type="application/dicom+json"; boundary=b', b"--b--\r\n", 415),
        ('multipart/related; type="application/dicom+xml"; boundary=b', b"--b--\r\n", 415),
        ("text/plain", b"x", 415),
        ('multipart/related; type="application/dicom"', b"x", 400),
        (RELATED, b"--b\r\nContent-Type: application/dicom\r\n\r\ncut", 400),
        (RELATED, b"--b--\r\n", 400),
    ],
)
def test_stow_refuses_what_it_does_not_take(running: Any, content_type: str, content: bytes, status: int) -> None:
    answer = httpx.post(
        f"{running.url}/dicom-web/studies", content=content, headers={**running.headers(), "content-type": content_type}
    )
    assert answer.status_code == status, answer.text
    assert list((running.service.archive.folder / "incoming").iterdir()) == []


def test_stow_that_breaks_off_keeps_what_was_whole(running: Any, forge: Any) -> None:
    files = [forge.file(header) for header in forge.series(3)]
    data = message(*files)[: -len(files[2]) // 2]
    answer = httpx.post(
        f"{running.url}/dicom-web/studies", content=data, headers={**running.headers(), "content-type": RELATED}
    )
    assert answer.status_code == 202
    assert len(answer.json()["00081199"]["Value"]) == 2
    assert list((running.service.archive.folder / "incoming").iterdir()) == []


def test_stow_of_a_large_object_passes_through_in_pieces(running: Any, forge: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (40, 512, 512), dtype=np.uint16)
    header = forge.slice(pixels=pixels[0], Modality="MR", NumberOfFrames=40, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3")
    header.PixelData = pixels.tobytes()
    data = forge.file(header)
    small = forge.file(forge.slice(number=2))
    body = message(small, data, small)

    def pieces() -> Any:
        for start in range(0, len(body), 777_777):
            yield body[start : start + 777_777]

    answer = httpx.post(
        f"{running.url}/dicom-web/studies", content=pieces(), headers={**running.headers(), "content-type": RELATED}
    )
    assert answer.status_code == 200, answer.text
    got = httpx.get(
        f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.1",
        headers={**running.headers(), "accept": "application/dicom; transfer-syntax=*"},
    )
    assert got.content == data
    head = httpx.get(
        got.url,
        headers={**running.headers(), "accept": "application/dicom; transfer-syntax=*", "range": "bytes=128-131"},
    )
    assert (head.status_code, head.content) == (206, b"DICM")


# Retrieving


def test_wado_gives_what_is_asked_for(running: Any, forge: Any) -> None:
    header = forge.slice(TransferSyntaxUID=ImplicitVRLittleEndian)
    running.add(header)
    url = f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.1"

    def get(accept: str) -> httpx.Response:
        return httpx.get(url, headers={**running.headers(), "accept": accept})

    stored = get("application/dicom; transfer-syntax=*")
    assert stored.content == forge.file(header)
    assert stored.headers["content-type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2"
    usual = pydicom.dcmread(io.BytesIO(get("application/dicom").content))
    assert usual.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert np.array_equal(usual.pixel_array, header.pixel_array)
    assert usual.PatientName == header.PatientName
    assert get("application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90").status_code == 406
    assert get("image/png").status_code == 406
    again = httpx.get(
        url,
        headers={
            **running.headers(),
            "accept": "application/dicom",
            "if-none-match": get("application/dicom").headers["etag"],
        },
    )
    assert (again.status_code, again.content) == (304, b"")
    assert (
        httpx.get(f"{url}?accept=application/dicom", headers=running.headers())
        .headers["content-type"]
        .startswith("application/dicom;")
    )


@pytest.mark.parametrize(
    "path", ["1.2.3", "1.2.3/series/1", "..", "%00", "1%2F2", "x" * 65, "1.2.3/series/1.2/instances/1.2.3/frames/1"]
)
def test_wado_of_what_is_not_there(running: Any, path: str) -> None:
    answer = httpx.get(f"{running.url}/dicom-web/studies/{path}", headers=running.headers())
    assert answer.status_code in {400, 404}


def _compressed(header: Any) -> Any:
    header.compress(RLELossless, generate_instance_uid=False)
    return header


def test_compressed_is_given_as_stored_or_decoded(running: Any, forge: Any) -> None:
    pytest.importorskip("imagecodecs")
    plain = forge.slice()
    running.add(_compressed(forge.slice()))
    url = f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1"
    decoded = httpx.get(url, headers={**running.headers(), "accept": 'multipart/related; type="application/dicom"'})
    ((fields, body),) = parts_of(decoded)
    assert fields["content-type"].endswith("transfer-syntax=1.2.840.10008.1.2.1")
    assert pydicom.dcmread(io.BytesIO(body)).PixelData == plain.PixelData
    ((fields, body),) = parts_of(httpx.get(url, headers={**running.headers(), "accept": ANY}))
    assert pydicom.dcmread(io.BytesIO(body)).file_meta.TransferSyntaxUID == RLELossless
    frames = f"{url}/instances/{forge.uid}.1.1.1/frames/1"
    raw = httpx.get(frames, headers={**running.headers(), "accept": "application/octet-stream"})
    assert raw.content == plain.PixelData
    stored = httpx.get(frames, headers={**running.headers(), "accept": "multipart/related; type=image/dicom-rle"})
    assert parts_of(stored)[0][0]["content-type"] == "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"
    ohif = httpx.get(
        frames,
        headers={**running.headers(), "accept": "multipart/related; type=application/octet-stream; transfer-syntax=*"},
    )
    assert parts_of(ohif)[0] == (
        {"content-type": "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.5"},
        parts_of(stored)[0][1],
    )
    refused = httpx.get(frames, headers={**running.headers(), "accept": "multipart/related; type=image/jls"})
    assert refused.status_code == 406


def test_frames_of_any_kind(running: Any, forge: Any) -> None:
    values = np.random.default_rng(1).integers(0, 2, (5, 7, 9), dtype=np.uint8)  # 63 bits a frame: no whole bytes
    bits = forge.slice(
        series=2, pixels=values[0], NumberOfFrames=5, Modality="SEG", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"
    )
    bits.BitsAllocated = bits.BitsStored = 1
    bits.HighBit = 0
    packed = np.packbits(values.reshape(-1), bitorder="little").tobytes()
    bits.PixelData = packed + b"\0" * (len(packed) % 2)
    big = forge.slice(series=3, TransferSyntaxUID=ExplicitVRBigEndian)
    little = big.PixelData
    big.PixelData = np.frombuffer(little, "<i2").astype(">i2").tobytes()
    running.add(bits, big)
    root = f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1"
    answer = httpx.get(
        f"{root}.2/instances/{forge.uid}.1.2.1/frames/5,2", headers={**running.headers(), "accept": "multipart/related"}
    )
    found = [
        np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")[:63].reshape(7, 9)
        for _, body in parts_of(answer)
    ]
    assert np.array_equal(found, values[[4, 1]])
    assert httpx.get(f"{root}.2/instances/{forge.uid}.1.2.1/frames/6", headers=running.headers()).status_code == 404
    assert httpx.get(f"{root}.2/instances/{forge.uid}.1.2.1/frames/x", headers=running.headers()).status_code == 400
    swapped = httpx.get(
        f"{root}.3/instances/{forge.uid}.1.3.1/frames/1",
        headers={**running.headers(), "accept": "application/octet-stream"},
    )
    assert swapped.content == little
    whole = httpx.get(
        f"{root}.3/instances/{forge.uid}.1.3.1", headers={**running.headers(), "accept": "application/dicom"}
    )
    assert pydicom.dcmread(io.BytesIO(whole.content)).PixelData == little


def test_pictures_are_windowed_and_fitted(running: Any, forge: Any) -> None:
    pixels = np.tile(np.arange(-160, 240, 10, dtype=np.int16)[:, np.newaxis], (1, 32))
    running.add(forge.slice(pixels=pixels))
    url = f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.1/rendered"

    def picture(query: str = "", accept: str = "image/png") -> Any:
        from PIL import Image

        answer = httpx.get(url + query, headers={**running.headers(), "accept": accept})
        assert answer.status_code == 200, answer.text
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    # PS3.3 C.11.2.1.2.1 by hand: ((x - 39.5) / 399 + 0.5) * 255 for the file's own 40, 400
    expected = np.clip(np.round(((pixels - 39.5) / 399 + 0.5) * 255), 0, 255)
    assert np.array_equal(picture(), expected)
    narrow = picture("?window=0,100,linear-exact")
    assert np.array_equal(narrow, np.clip(np.round(((pixels - 0) / 100 + 0.5) * 255), 0, 255))
    assert picture("?viewport=16,16").shape == (16, 13)
    assert np.array_equal(picture("?viewport=32,20,0,20,32,20"), expected[20:])
    assert picture(accept="image/jpeg;q=0.9, image/png;q=0.1").shape == (40, 32)
    for wrong in (
        "?window=1",
        "?window=a,b",
        "?window=0,0",
        "?viewport=0,0",
        "?viewport=9999999,1",
        "?quality=101",
        "?window=nan,nan",
    ):
        assert httpx.get(url + wrong, headers={**running.headers(), "accept": "image/png"}).status_code == 400, wrong
    assert httpx.get(url, headers={**running.headers(), "accept": "video/mp4"}).status_code == 406
    small = httpx.get(f"{running.url}/dicom-web/studies/{forge.uid}.1/thumbnail", headers=running.headers())
    assert small.headers["content-type"] == "image/jpeg"


def test_metadata_has_everything_but_large_values(running: Any, forge: Any) -> None:
    header = forge.slice()
    header.add_new(0x00420011, "OB", bytes(5000))
    header.add_new(0x00091001, "UN", b"\xff\xfe\xfd\x00")
    header.LossyImageCompressionRatio = ""
    running.add(header, forge.slice(number=2))
    url = f"{running.url}/dicom-web/studies/{forge.uid}.1"
    answers = [
        httpx.get(f"{url}{path}/metadata", headers=running.headers())
        for path in ("", f"/series/{forge.uid}.1.1", f"/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.1")
    ]
    assert answers[0].json() == answers[1].json()
    first = answers[2].json()[0]
    assert answers[0].json()[0] == first
    assert first["00100010"]["Value"] == [{"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小東"}]
    assert first["00280030"]["Value"] == [0.7, 0.5]
    for tag, size in (("00420011", 5000), ("7FE00010", 40 * 32 * 2)):
        bulk = httpx.get(first[tag]["BulkDataURI"], headers={**running.headers(), "accept": "application/octet-stream"})
        assert (bulk.status_code, len(bulk.content)) == (200, size), tag
    for place in ("00100010", "00420011/1/00420011", "zz", "00420011/x", "FFFFFFFFFF", "00081199/1/00081155"):
        wrong = f"{url}/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.1/bulkdata/{place}"
        assert httpx.get(wrong, headers=running.headers()).status_code == 404, place
    # Kept for the next time, and made anew when the series changes.
    kept = list((running.service.config.server.data / "cache").glob("series-*/metadata-*"))
    assert len(kept) == 1
    running.add(forge.slice(number=3))
    assert len(httpx.get(f"{url}/metadata", headers=running.headers()).json()) == 3
    assert len(list((running.service.config.server.data / "cache").glob("series-*/metadata-*"))) == 1


def test_looking_is_recorded_once_and_named_by_row(running: Any, forge: Any) -> None:
    from sqlalchemy import select

    from sagittal.database.schema import audit

    running.add(*forge.series(3))
    for n in (1, 2, 3):
        httpx.get(
            f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.{n}",
            headers=running.headers("reader"),
        )
    with running.service.db.read() as c:
        rows = c.execute(select(audit).where(audit.c.action == "view")).mappings().all()
    assert [(row["actor"], row["study_id"]) for row in rows] == [("the-reader", 1)]
    assert forge.uid not in json.dumps([row["details"] for row in rows])


# dicomweb-client


def test_dicomweb_client_stores_searches_and_retrieves(client: Any, forge: Any) -> None:
    headers = [*forge.series(3), *forge.series(2, series=2), forge.slice(study=2, patient="P2", name="Müller^Jörg")]
    client.store_instances(datasets=[pydicom.dcmread(io.BytesIO(forge.file(header))) for header in headers])
    studies = client.search_for_studies()
    assert {one["0020000D"]["Value"][0] for one in studies} == {f"{forge.uid}.1", f"{forge.uid}.2"}
    found = client.search_for_studies(
        search_filters={"PatientID": "P1"}, fields=["00081030"], limit=10, offset=0, fuzzymatching=False
    )
    assert [one["00200010"]["Value"] for one in found] == [["1"]]
    assert found[0]["00201208"]["Value"] == [5]
    assert client.search_for_studies(search_filters={"PatientName": "m?ller*"}, fuzzymatching=True)
    assert client.search_for_studies(offset=5) == []
    series = client.search_for_series(f"{forge.uid}.1")
    assert sorted(one["00201209"]["Value"][0] for one in series) == [2, 3]
    instances = client.search_for_instances(f"{forge.uid}.1", f"{forge.uid}.1.1")
    assert [one["00080018"]["Value"][0] for one in instances] == [f"{forge.uid}.1.1.{n}" for n in (1, 2, 3)]
    assert len(client.search_for_instances(get_remaining=True, limit=2)) == 6
    got = list(client.retrieve_study(f"{forge.uid}.1"))
    assert len(got) == 5
    streamed = list(client.iter_series(f"{forge.uid}.1", f"{forge.uid}.1.1"))
    assert [one.SOPInstanceUID for one in streamed] == [f"{forge.uid}.1.1.{n}" for n in (1, 2, 3)]
    one = client.retrieve_instance(f"{forge.uid}.1", f"{forge.uid}.1.1", f"{forge.uid}.1.1.2")
    assert one.PixelData == headers[1].PixelData
    assert one.PatientName == headers[1].PatientName
    frame = client.retrieve_instance_frames(f"{forge.uid}.1", f"{forge.uid}.1.1", f"{forge.uid}.1.1.2", [1])
    assert frame == [headers[1].PixelData]
    picture = client.retrieve_instance_rendered(
        f"{forge.uid}.1", f"{forge.uid}.1.1", f"{forge.uid}.1.1.2", media_types=("image/png",)
    )
    assert picture.startswith(b"\x89PNG")
    metadata = client.retrieve_series_metadata(f"{forge.uid}.1", f"{forge.uid}.1.1")
    assert len(metadata) == 3
    bulk = list(client.retrieve_bulkdata(metadata[0]["7FE00010"]["BulkDataURI"]))
    assert bulk == [headers[0].PixelData]
