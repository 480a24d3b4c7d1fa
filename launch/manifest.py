"""A manifest: the size and the sha256 of every file below a directory, beside the facts that go with them.

It is written last, when all that it names is safely on the disk, and holds a digest of itself. So a directory whose
manifest agrees is as it was when it was finished, to the bit.
"""

import hashlib
import json
import os

from paradigm.errors import UserError
from paradigm.storage import patiently

FORMAT = 1
NAME = "manifest.json"


class Damaged(Exception):
    """Why a directory is not what it was when its manifest was written, or never had one."""


def write(directory, facts):
    """Flushes and hashes every file below a directory (a Path), and writes the manifest: the mark that this was done.

    facts: a dict for JSON; `read` gives it back. Its 'step' is the name that the directory is going to have.
    """
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        patiently(sync, path)
        files[path.relative_to(directory).as_posix()] = list(patiently(_measure, path))
    patiently(_put, directory, {**facts, "format_version": FORMAT, "files": files})
    for folder, _, _ in os.walk(directory):
        patiently(sync, folder)


def amend(directory, facts):
    """Replaces facts in the manifest of a directory, in one move. Raises what `read` raises."""
    _put(directory, read(directory) | facts)
    sync(directory)


def _put(directory, content):
    unfinished = directory / f"{NAME}.tmp"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump({**content, "sha256": digest(content)}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, directory / NAME)


def read(directory):
    """What the manifest of a directory says, checked against its own digest; the files are not looked at.

    Raises:
        Damaged: it is missing, unreadable, altered, or another directory's.
        UserError: it is of a newer format.
    """
    try:
        content = json.loads(patiently((directory / NAME).read_bytes))
        expected = content.pop("sha256")
    except FileNotFoundError:
        raise Damaged(f"it has no {NAME}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its {NAME} cannot be read ({type(error).__name__})") from error
    if digest(content) != expected:
        raise Damaged(f"its {NAME} was altered")
    version = content["format_version"]
    if version > FORMAT:
        raise UserError(f"{directory}: format {version}, and this version reads up to {FORMAT}: update paradigm")
    if str(content["step"]) != directory.name:
        raise Damaged(f"it holds step {content['step']}")
    return content


def verify(directory):
    """Raises Damaged unless every file of the manifest is there with its size and its bytes."""
    for name, (size, sha256) in read(directory)["files"].items():
        try:
            found, digest = patiently(_measure, directory / name)
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror or error}") from error
        if found != size:
            raise Damaged(f"{name} has {found} bytes instead of {size}")
        if digest != sha256:
            raise Damaged(f"{name} was altered: its sha256 differs")


def _measure(path):
    """(bytes, sha256) of a file."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def digest(content):
    """sha256 (hex) of a manifest without its digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync(path):
    """Makes the content of a file, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
