"""Small data sets of pictures in every container, for the tests of image data."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from vision.data import ImageData


def opened(source, **settings):
    return ImageData(source=str(source), **settings).build(progress=False)


def records(prepared, split="train"):
    source = prepared.source(split)
    return [source[i] for i in range(len(source))]


def pixels(seed, height=6, width=9, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image, kind="PNG", **how):
    """The bytes of a picture file: of an array, or of a Pillow picture."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return root


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else encoded(content))
    return path


def tarred(path, files):
    """A tar, packed as its suffix says; each name is there twice, first as something older."""
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in [*((name, b"older") for name in files), *files.items()]:
            raw = content if isinstance(content, bytes) else encoded(content)
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path
