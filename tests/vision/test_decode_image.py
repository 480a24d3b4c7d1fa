import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from paradigm.errors import UserError
from tests.vision.pictures import encoded, folder, opened, pixels
from vision.decode_image import decode


def test_every_mode_becomes_the_same_picture():
    colour = pixels(0)
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    picture = Image.fromarray(colour)
    few = picture.quantize(8)
    for raw, wanted, near in (
        (encoded(picture), colour, 0),
        (encoded(picture, "BMP"), colour, 0),
        (encoded(picture, "WEBP", lossless=True), colour, 0),
        (encoded(few), np.asarray(few.convert("RGB")), 0),
        (encoded(picture.convert("CMYK"), "TIFF"), colour, 1),
        (encoded(picture.convert("CMYK"), "JPEG", quality=100, subsampling=0), colour, 12),
        (encoded(grey), np.repeat(grey[:, :, None], 3, 2), 0),
        (
            encoded(Image.fromarray(np.minimum(grey * 257.0 + 100, 65535).astype(np.uint16))),
            np.repeat(grey[:, :, None], 3, 2),
            0,
        ),
        (encoded(Image.fromarray(grey > 99)), np.repeat(np.uint8(255 * (grey > 99))[:, :, None], 3, 2), 0),
    ):
        found = decode(raw)
        assert found.dtype == np.uint8 and found.shape == (6, 9, 3)
        assert np.abs(found.astype(int) - wanted).max() <= near
        luminance = decode(raw, channels=1)
        assert luminance.shape == (6, 9, 1)
        assert np.abs(luminance[:, :, 0].astype(int) - np.asarray(Image.fromarray(wanted).convert("L"))).max() <= near


def test_transparent_parts_lie_on_white():
    colour, alpha = pixels(1), np.array([[0, 128, 255]], np.uint8).repeat(6, 0).repeat(3, 1)
    wanted = colour * (alpha[:, :, None] / 255) + 255 * (1 - alpha[:, :, None] / 255)
    assert np.abs(decode(encoded(np.dstack([colour, alpha]))) - wanted).max() <= 0.51
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    found = decode(encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])))
    assert (found[:, :3] == 255).all() and (found[:, 6:] == grey[:, 6:, None]).all()
    palette = Image.fromarray(colour).quantize(4)
    first = palette.getpixel((0, 0))
    found = decode(encoded(palette, transparency=first))
    assert (found[np.asarray(palette) == first] == 255).all() and (found != 255).any()


def test_pictures_are_turned_upright_and_the_first_of_several_is_read():
    colour = pixels(2)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    assert (decode(encoded(colour, exif=exif)) == np.rot90(colour, -1)).all()
    frames = [Image.fromarray(np.full((4, 4), 60 * i, np.uint8)) for i in range(3)]
    assert (decode(encoded(frames[1], "GIF", save_all=True, append_images=frames[2:])) == 60).all()


def bomb(width, height):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 9)) + chunk(b"IEND", b"")


def test_decompression_bombs_are_broken_and_never_unpacked(tmp_path, monkeypatch):
    """A picture above max_pixels ends no run that replaces broken ones, and any run that refuses them."""
    bombs = {"train/1.png": bomb(30_000, 30_000), "train/2.png": bomb(9_000, 8_000)}
    folder(tmp_path / "d", {"train/0.png": pixels(0), "valid/3.png": pixels(3), **bombs})
    replaces = opened(tmp_path / "d").source("train")
    refuses = opened(tmp_path / "d", on_broken="refuse").source("train")
    with pytest.raises(UserError, match=r"3.png \(it has 54 pixels and ImageData.max_pixels is 53"):
        opened(tmp_path / "d", max_pixels=53)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was unpacked"))
    for i, count in ((1, "more than 178,956,970"), (2, "72,000,000")):
        said = rf"it has {count} pixels and ImageData.max_pixels is 64,000,000: remove it, or raise that"
        with pytest.raises(ValueError, match=f"^{said}") as broken:
            replaces[i]
        assert not isinstance(broken.value, UserError)
        with pytest.raises(UserError, match=rf"{i}.png is broken \({said}"):
            refuses[i]
