"""Pictures: every pixel where it belongs, whatever the file's kind."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from PIL import Image as Pictures

from sagittal.errors import MissingPackageError, ReadError
from sagittal.formats import raster
from sagittal.formats.label_map import read_label_map
from sagittal.formats.open_image import read_image
from sagittal.formats.raster import read_raster, turn

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)  # 5 high, 7 wide
RGB = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_and_colour_keep_their_pixels(tmp_path, suffix):
    Pictures.fromarray(GREY).save(tmp_path / f"g.{suffix}")
    image = read_raster(tmp_path / f"g.{suffix}")
    assert image.data.shape == (1, 7, 5, 1)
    np.testing.assert_array_equal(image.data[0, :, :, 0], GREY.T)
    assert (image.bits, image.unit, image.modality, image.grid.affine, image.grid.spacing) == (8, "1", "OT", None, None)
    Pictures.fromarray(RGB).save(tmp_path / f"c.{suffix}")
    np.testing.assert_array_equal(read_raster(tmp_path / f"c.{suffix}").data[..., 0], RGB.transpose(2, 1, 0))


def test_jpeg_is_near(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))
    Pictures.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_raster(tmp_path / "a.jpg").data[0, :, :, 0].T - smooth).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    deep = (np.arange(35, dtype=np.uint16) * 1800).reshape(5, 7)
    Pictures.fromarray(deep).save(tmp_path / f"a.{suffix}")
    image = read_raster(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image.data[0, :, :, 0].T, deep)
    assert image.bits == 16


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colour_is_not_cut_to_eight(tmp_path, suffix):
    imagecodecs = pytest.importorskip("imagecodecs")
    tifffile = pytest.importorskip("tifffile")
    deep = np.random.default_rng(1).integers(0, 65535, (5, 7, 3), dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(imagecodecs.png_encode(deep))
    else:
        tifffile.imwrite(path, deep, photometric="rgb")
    image = read_raster(path)
    np.testing.assert_array_equal(image.data[..., 0], deep.transpose(2, 1, 0))
    assert image.bits == 16


def test_sixteen_bit_colour_without_the_codecs_names_the_extra(tmp_path, monkeypatch):
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.zeros((5, 7, 3), np.uint16)))
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(MissingPackageError, match=r"16-bit colour needs.*pip install 'sagittal\[codecs\]'"):
        read_raster(tmp_path / "a.png")


def test_palette_becomes_rgb_and_transparency_is_dropped_not_blended(tmp_path):
    indexed = Pictures.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putdata([0, 1])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "p.png").data[:, :, 0, 0].T, [[10, 20, 30], [40, 50, 60]])
    rgba = np.dstack([RGB, np.zeros((5, 7), np.uint8)])
    Pictures.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "a.png").data[..., 0], RGB.transpose(2, 1, 0))
    Pictures.fromarray(np.dstack([GREY, GREY * 0])).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "la.png").data[0, :, :, 0].T, GREY)


def test_bilevel_holds_0_and_255(tmp_path):
    Pictures.fromarray(GREY > 17).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "a.png").data[0, :, :, 0].T, np.where(GREY > 17, 255, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(tmp_path, orientation):
    """What each number means, from the table of EXIF 2.3: where row 0 and column 0 of the file are to be seen."""
    shown = {
        1: GREY, 2: np.fliplr(GREY), 3: np.rot90(GREY, 2), 4: np.flipud(GREY), 5: GREY.T, 6: np.rot90(GREY, -1),
        7: np.rot90(GREY.T, 2), 8: np.rot90(GREY, 1),
    }[orientation]  # fmt: skip
    exif = Pictures.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif"):
        Pictures.fromarray(GREY).save(tmp_path / f"a.{suffix}", exif=exif)
        np.testing.assert_array_equal(read_raster(tmp_path / f"a.{suffix}").data[0, :, :, 0].T, shown)
    np.testing.assert_array_equal(turn(GREY, orientation), shown)
    flat = np.kron(GREY, np.ones((16, 16), np.uint8))
    Pictures.fromarray(flat).save(tmp_path / "a.jpg", exif=exif, quality=98)
    found = read_raster(tmp_path / "a.jpg").data[0, :, :, 0].T
    assert np.abs(found - turn(flat, orientation)).max() <= 3


def test_masks_with_a_palette_are_turned_as_their_images_are(tmp_path):
    indices = (GREY % 3).astype(np.uint8)
    exif = Pictures.Exif()
    exif[0x0112] = 6
    mask = Pictures.new("P", (7, 5))
    mask.putdata(indices.ravel().tolist())
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for suffix in ("tif", "png"):
        mask.save(tmp_path / f"a.{suffix}", exif=exif)
        found = read_label_map([tmp_path / f"a.{suffix}"], structures={"a": [1], "b": [2]})
        np.testing.assert_array_equal(found.layers[0, :, :, 0].T, np.rot90(indices, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_orientation_of_sixteen_bit_colour(tmp_path, suffix):
    imagecodecs = pytest.importorskip("imagecodecs")
    tifffile = pytest.importorskip("tifffile")
    deep = np.random.default_rng(1).integers(0, 65535, (5, 7, 3), dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, deep, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    else:
        raw = imagecodecs.png_encode(deep)
        body = b"eXIf" + b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        path.write_bytes(raw[:33] + chunk + raw[33:])
    np.testing.assert_array_equal(read_raster(path).data[..., 0].transpose(2, 1, 0), np.rot90(deep, -1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64", "uint64"])
def test_numbers_of_every_kind_in_tiles_bigtiff_and_compressed(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 250, (40, 50)).astype(dtype)
    values[0, 0] = 1e30 if dtype[0] == "f" else np.iinfo(dtype).max
    for name, how in (("a", {}), ("b", {"bigtiff": True, "tile": (16, 32)}), ("c", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="minisblack", **how)
        found = read_raster(tmp_path / f"{name}.tif").data[0, :, :, 0].T
        np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_where_zero_is_white_values_are_turned_over(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = GREY.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    found = read_raster(tmp_path / "a.tif").data[0, :, :, 0].T
    np.testing.assert_array_equal(found, (np.iinfo(dtype).max - values).astype(np.float32))


def test_pages_of_sixteen_bit_colour_and_copies_of_lower_resolution(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pages = np.random.default_rng(1).integers(0, 65535, (3, 5, 7, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb")
    np.testing.assert_array_equal(read_raster(tmp_path / "a.tif").data.transpose(3, 2, 1, 0), pages)
    for values in (GREY, pages[0]):
        with tifffile.TiffWriter(tmp_path / "b.tif") as file:
            colour = "rgb" if values.ndim == 3 else "minisblack"
            file.write(values, photometric=colour)
            file.write(values[::2, ::2], photometric=colour, subfiletype=1)
        found = read_raster(tmp_path / "b.tif")
        assert found.grid.shape == (7, 5, 1)
        np.testing.assert_array_equal(found.data[0, :, :, 0].T, values if values.ndim == 2 else values[..., 0])
    with tifffile.TiffWriter(tmp_path / "c.tif") as file:
        for values in (pages[0], pages[0, :4]):
            file.write(values, photometric="rgb")
    with pytest.raises(ReadError, match="pages differ in size"):
        read_raster(tmp_path / "c.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("colours", [1, 3])
def test_jpeg_2000(tmp_path, dtype, colours):
    imagecodecs = pytest.importorskip("imagecodecs")
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, colours), dtype=dtype)
    for kind in ("jp2", "j2k"):
        raw = imagecodecs.jpeg2k_encode(values.squeeze(), level=0, reversible=True, codecformat=kind)
        (tmp_path / f"a.{kind}").write_bytes(raw)
        image = read_image(tmp_path / f"a.{kind}")
        np.testing.assert_array_equal(image.data[..., 0].transpose(2, 1, 0), values)
        assert image.bits == 8 * values.itemsize
        (tmp_path / f"b.{kind}").write_bytes(raw[: len(raw) // 3])
        with pytest.raises(ReadError, match="damaged or cut off"):
            read_image(tmp_path / f"b.{kind}")


def test_webp_and_animations(tmp_path):
    Pictures.fromarray(RGB).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp").data[..., 0], RGB.transpose(2, 1, 0))
    for suffix in ("webp", "png"):
        frames = [Pictures.fromarray(RGB), Pictures.fromarray(RGB[::-1].copy())]
        frames[0].save(tmp_path / f"b.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        with pytest.raises(ReadError, match="animated, with 2 frames"):
            read_raster(tmp_path / f"b.{suffix}")


def test_pages_of_a_tiff_stand_along_k(tmp_path):
    pages = [Pictures.fromarray(GREY + n) for n in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    image = read_raster(tmp_path / "a.tif")
    assert image.grid.shape == (7, 5, 3)
    np.testing.assert_array_equal(image.data[0, :, :, 2].T, GREY + 2)
    pages[1] = Pictures.fromarray(np.zeros((5, 8), np.uint8))
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ReadError, match="pages differ in size"):
        read_raster(tmp_path / "b.tif")


def test_floating_point_tiff_is_read(tmp_path):
    values = np.linspace(-3, 7, 35, dtype=np.float32).reshape(5, 7)
    Pictures.fromarray(values).save(tmp_path / "a.tif")
    image = read_raster(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data[0, :, :, 0].T, values)
    assert image.bits == 0


def test_a_decompression_bomb_is_refused(tmp_path):
    Pictures.fromarray(GREY).save(tmp_path / "a.png")
    raw = bytearray((tmp_path / "a.png").read_bytes())
    raw[16:24] = (60000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(bytes(raw))
    with pytest.raises(ReadError, match=r"more pixels than are read at once|at most 268,435,456"):
        read_raster(tmp_path / "a.png")


def test_a_cut_picture_is_refused(tmp_path):
    Pictures.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(ReadError, match="damaged or cut off"):
        read_raster(tmp_path / "a.png")


def test_directories_in_a_circle_end(tmp_path, monkeypatch):
    """Found by fuzzing: 150 bytes on whose directories a decoder turned for ever."""
    pytest.importorskip("tifffile")
    endless = (
        "SUkqAAgAAAAJADS3BAABAAAAsAAAS+z4DAAM/wQpgKTFJ9AH+KesDdhZtacAAAMBAwABAAAAAQAA////f4DAXWBtyDK0X9QwmAAQ"
        "AAAA1DC4C3wVMHVQRmDq3IIEKQx7qGEcJZSOQB8AAAz/NKQsU0TvYAAAAAgAAAADovxTREgAEFLYWayKoA8AAAAQAAAAAAAAVegD"
    )
    path = tmp_path / "a.tif"
    path.write_bytes(base64.b64decode(endless))
    monkeypatch.setattr(raster, "PATIENCE_S", 20.0)
    with pytest.raises(ReadError, match="every extent must be at least 1"):
        read_raster(path)
