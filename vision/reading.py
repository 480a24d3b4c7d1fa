"""What the sources of pictures share: how records are read, what a source becomes, and what is broken in one."""

import dataclasses
import hashlib
import re
from typing import Any

from paradigm.errors import UserError
from vision.decode_image import MAX_PIXELS, decode
from vision.synthetic_scenes import Shapes


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records are read; the fields of vision.data.ImageData of the same names."""

    channels: int = 3
    on_broken: str = "replace"
    max_pixels: int = MAX_PIXELS
    labels: bool = True
    classes: tuple[str, ...] = ()
    image_field: str = "image"
    label_field: str = "label"
    regions: str = ""
    shapes: Shapes = Shapes()


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a source's name stands for. splits: those of train, valid and test that it brings. classes: or None.

    digest: changes with the contents. note: what a person should know.
    """

    splits: dict[str, Any]
    classes: tuple[str, ...] | None
    digest: str
    note: str = ""


def decoded(raw, name, reading):
    """The pixels of raw() -> bytes; a broken picture is a UserError if it is to be refused, else a ValueError."""
    return checked(lambda: decode(raw(), reading.channels, reading.max_pixels), name, reading)


def checked(made, name, reading):
    """made(), whose errors say what is broken."""
    try:
        return made()
    except UserError:
        raise
    except Exception as error:  # decoders raise anything at all
        reason = reason_of(error)
        if reading.on_broken == "refuse":
            raise UserError(
                f"{name} is broken ({reason}): mend or remove it, or set ImageData.on_broken = 'replace'"
            ) from error
        raise ValueError(reason) from error


def reason_of(error):
    return re.sub(r" <_io\.BytesIO object at \w+>", "", (str(error).splitlines() or [type(error).__name__])[0])


def digest(lines):
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
