"""What the sources of pairs share: captions out of named fields, and which pairs are held out."""

import hashlib
import re
import zlib

import numpy as np

from paradigm.dataset import mix64
from paradigm.errors import UserError

_FIELD = re.compile(r"\{([^{}]+)\}")


def captions_of(fields, text, separator=""):
    """The captions that some named texts make: a tuple of str, none of them empty.

    fields: name -> str, bytes, or several of them, or {"text": several}. text: of each a name, or a sentence with names
    in braces; one that names an empty field says nothing. separator: what stands between the words of a list in a
    field, read as a comma.
    """
    found = []
    for wanted in text:
        names = _FIELD.findall(wanted)
        if not names:
            found += _texts(fields.get(wanted), separator)
            continue
        values = {name: (_texts(fields.get(name), separator) or ("",))[0] for name in names}
        if all(values.values()):
            found.append(_FIELD.sub(lambda match: values[match[1]], wanted))
    return tuple(found)


def _texts(value, separator):
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        return ()
    values = [value] if isinstance(value, (str, bytes)) else list(value)
    texts = (str(v, "utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values)
    texts = (" ".join((t.replace(separator, ", ") if separator else t).split()) for t in texts)
    return tuple(t for t in texts if t)


def names_in(text):
    """The names of fields that `captions_of` would read."""
    return [name for wanted in text for name in (_FIELD.findall(wanted) or [wanted])]


def digest(lines):
    """Changes with any of the lines."""
    found = hashlib.sha256()
    for line in lines:
        found.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:32]


def hash_of(name):
    """uint64 of a name."""
    return mix64(np.array([zlib.crc32(name.encode("utf-8", "surrogateescape"))], np.uint64))[0]


def held_out(hashes, share, where):
    """bool [n]: which of n records are held out, those whose group's hash is among the smallest; one group at least."""
    hashes = np.asarray(hashes, np.uint64)
    groups = np.unique(hashes)
    if len(groups) < 2:
        raise UserError(f"{where} holds {len(hashes)} pair{'s' * (len(hashes) != 1)} that belong together: none can "
                        "be held out for validation, so add some")  # fmt: skip
    return hashes < groups[min(max(1, round(share * len(groups))), len(groups) - 1)]
