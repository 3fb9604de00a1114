"""Gzip streams: what gzip says, no more than is asked, and every damage told."""

from __future__ import annotations

import gzip
import io
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.errors import ReadError
from sagittal.guard import gzipped
from sagittal.guard.gzipped import GzipStream


@pytest.fixture(params=["isal", "zlib"], autouse=True, scope="module")
def engine(request):
    patch = pytest.MonkeyPatch()
    if request.param == "zlib":
        patch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")
    yield request.param
    patch.undo()


def test_the_engine_is_the_one_that_is_there(engine):
    assert type(gzipped.inflater()).__module__.startswith("isal" if engine == "isal" else "zlib")


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 4000), st.integers(0, 9)), min_size=1, max_size=4),
    sizes=st.lists(st.integers(0, 5000), max_size=10),
    piece=st.sampled_from([1, 7, 64, 2**20]),
    padding=st.sampled_from([b"", b"\0" * 100]),
)
def test_any_members_in_any_pieces_equal_gzip(parts, sizes, piece, padding):
    packed = b"".join(gzip.compress(raw * times, level) for raw, times, level in parts) + padding
    whole = b"".join(raw * times for raw, times, _ in parts)
    patch = pytest.MonkeyPatch()
    patch.setattr(gzipped, "_PIECE", piece if len(packed) < 5000 else 4096)
    with patch.context(), GzipStream(io.BytesIO(packed)) as stream:
        found = b"".join(stream.read(size) for size in sizes)
        assert found == whole[: sum(sizes)]
        assert found + stream.read(len(whole) + 10) == whole
        stream.check_end()
    patch.undo()


def test_a_bomb_gives_what_is_asked(engine):
    packed = gzip.compress(bytes(2**27))
    with GzipStream(io.BytesIO(packed)) as stream:
        assert stream.read(1000) == bytes(1000)
        assert len(stream._packed) > 2**16, "the rest is still packed"


def unpack(packed, size=100_000):
    with GzipStream(io.BytesIO(packed)) as stream:
        content = stream.read(size)
        stream.check_end()
        return content


NOISE = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes() + bytes(50_000)


@pytest.mark.parametrize("end", [5, 12, 30_000, 50_100, -9, -5, -1])
def test_a_cut_stream_is_told(end):
    with pytest.raises(ReadError, match="damaged or cut off"):
        unpack(gzip.compress(NOISE)[:end])


def test_a_wrong_checksum_is_told():
    packed = bytearray(gzip.compress(NOISE))
    packed[-6] ^= 1
    with pytest.raises(ReadError, match="damaged"):
        unpack(bytes(packed))


def test_any_changed_byte_is_told_or_harmless():
    packed = gzip.compress(NOISE[40_000:60_000])
    rng = np.random.default_rng(1)
    for at in rng.integers(10, len(packed), 200):
        damaged = bytearray(packed)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            found = unpack(bytes(damaged), 20_000)
        except ReadError:
            continue
        assert found == NOISE[40_000:60_000]


def test_content_beyond_what_was_asked_is_checked_and_not_without_end():
    assert unpack(gzip.compress(NOISE), 10) == NOISE[:10]
    with pytest.raises(ReadError, match="far more than it should"):
        unpack(gzip.compress(bytes(2**25)), 10)


def test_junk_behind_the_stream_is_damage_only_where_it_is_read():
    with GzipStream(io.BytesIO(gzip.compress(b"abc") + b"junk")) as stream:
        assert stream.read(3) == b"abc"
        stream.check_end()
        with pytest.raises(ReadError, match="damaged"):
            stream.read(1)


def test_raw_and_zlib_streams_are_unpacked_too():
    for wbits in (15, -15):
        packer = zlib.compressobj(wbits=wbits)
        packed = packer.compress(NOISE) + packer.flush()
        assert gzipped.inflater(wbits).decompress(packed) == NOISE
