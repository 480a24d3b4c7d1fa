"""The bytes of a picture file become pixels, whatever the file holds; what would fill the memory is not unpacked."""

import contextlib
import functools
import io

import numpy as np
from PIL import Image, ImageOps, features

with contextlib.suppress(ImportError):  # an extra of Pillow's that a person may have
    import pillow_heif

    pillow_heif.register_heif_opener()

MAX_PIXELS = 64_000_000
PILLOW_PIXELS = 178_956_970  # past which Pillow opens nothing


_SUFFIXES = """.jpg .jpeg .jpe .jfif .png .apng .webp .avif .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .tga
               .qoi .mpo .heic .heif""".split()
_OPTIONAL = {".webp": "webp", ".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000"}  # parts of Pillow
UNREAD = {".heic": "pip install pillow-heif", ".heif": "pip install pillow-heif", ".avif": "a newer Pillow",
          ".webp": "a newer Pillow", ".jxl": "converting", ".raw": "converting", ".dng": "converting"}  # fmt: skip


@functools.cache
def suffixes():
    """The suffixes of pictures that Pillow reads as it is installed here, lower case."""
    Image.init()
    known = Image.registered_extensions()
    return tuple(s for s in _SUFFIXES if s in known and (s not in _OPTIONAL or features.check(_OPTIONAL[s])))


def decode(raw, channels=3, max_pixels=MAX_PIXELS, recipe="ImageData"):
    """uint8 [h, w, channels] of the bytes of a picture, turned upright as EXIF says, the first one of several.

    Transparent parts are laid on white, 16 bits become 8, CMYK and the like RGB; channels 1 is the luminance. Raises
    ValueError if it would have more than max_pixels (its header is read before it is unpacked), and what Pillow raises
    if it is broken. recipe: the class whose setting max_pixels is, for the message.
    """
    try:
        picture = Image.open(io.BytesIO(raw))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bomb(f"more than {PILLOW_PIXELS:,}", max_pixels, recipe) from None
    with picture:
        if picture.width * picture.height > max_pixels:
            raise _bomb(f"{picture.width * picture.height:,}", max_pixels, recipe)
        return pixels_of(picture, channels)


def pixels_of(picture, channels):
    """What `decode` gives, of a picture that Pillow has opened."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        deep = np.asarray(picture)
        if picture.mode == "F" or deep.min() < 0 or deep.max() > 0xFFFF:
            raise ValueError(f"pixels of mode {picture.mode} that are not 16-bit numbers")
        picture = Image.fromarray(((deep.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return to_channels(np.asarray(picture), channels)


def mode(raw):
    """What Pillow calls the channels that a picture's header tells: RGB, L, RGBA, P ... ValueError for what `decode`
    refuses by it."""
    with Image.open(io.BytesIO(raw)) as picture:
        if picture.mode == "F":
            raise ValueError("pixels of mode F that are not 16-bit numbers")
        return picture.mode


def _bomb(pixels, limit, recipe):
    return ValueError(
        f"it has {pixels} pixels and {recipe}.max_pixels is {limit:,}: remove it, or raise that if it is no "
        "decompression bomb"
    )


def to_channels(image, channels):
    """uint8 [h, w] or [h, w, 1 | 3 | 4] -> [h, w, channels]: repeated grey, BT.601 luminance, or laid on white."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 4:
        alpha = image[:, :, 3:].astype(np.uint32)
        image = ((image[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if image.shape[2] == channels:
        return image
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    return np.repeat(image, channels, axis=2)


def class_map(raw, size):
    """A map of classes, the bytes of a picture file of grey or palette numbers -> uint8 [height, width], upright.

    size: (height, width) of the picture that it is of. Raises ValueError for a map of another size, of another mode, or
    as JPEG, which blends numbers.
    """
    with Image.open(io.BytesIO(raw)) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError("a map of classes as JPEG, which blends the numbers of neighbours: write maps as PNG")
        if image.mode not in ("L", "P", "1"):
            raise ValueError(f"a map of classes has grey or palette numbers, and this one is {image.mode}")
        found = np.asarray(ImageOps.exif_transpose(image), np.uint8)
    if found.shape != tuple(size):
        raise ValueError(f"the map has {found.shape[1]} x {found.shape[0]} pixels, its picture {size[1]} x {size[0]}")
    return found
