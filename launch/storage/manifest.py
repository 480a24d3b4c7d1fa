"""A manifest: the size and the sha256 of every file below a directory, beside the facts that go with them.

It is written last, when all that it names is safely on the disk, and holds a digest of itself. So a directory whose
manifest agrees is as it was when it was finished, to the bit.
"""

import concurrent.futures
import hashlib
import json

from launch.storage import filesystem
from launch.storage.filesystem import MANIFEST as NAME
from paradigm.errors import UserError
from paradigm.storage import retry

FORMAT = 2  # 1: parameters and settings had other names
CHUNK = 1 << 20  # bytes read at a time


class Damaged(Exception):
    """Why a directory is not what it was when its manifest was written, or never had one."""


def write(directory, facts):
    """Flushes and hashes every file below a directory, and writes the manifest: the mark that this was done.

    Args:
        directory: as `filesystem.as_path` makes it.
        facts: a dict for JSON; `read` gives it back. Its 'step' is the name that the directory is going to have.
    """
    kept = filesystem.of(directory)
    paths = kept.files(directory)
    for path in paths:
        retry(kept.sync, path)
    files = {}
    for path, found in zip(paths, _measured(paths, kept.AT_ONCE)):
        if isinstance(found, OSError):
            raise found
        files[path.relative_to(directory).as_posix()] = list(found)
    _put(directory, {**facts, "format_version": FORMAT, "files": files})
    kept.sync_names(directory)


def amend(directory, facts):
    """Replaces facts in the manifest of a directory, in one move. Raises what `read` raises."""
    _put(directory, read(directory) | facts)
    filesystem.of(directory).sync(directory)


def _put(directory, content):
    text = json.dumps({**content, "sha256": digest(content)}, indent=1, sort_keys=True)
    filesystem.of(directory).put(directory / NAME, text.encode())


def read(directory):
    """What the manifest of a directory says, checked against its own digest; the files are not looked at.

    Raises:
        Damaged: it is missing, unreadable, altered, or another directory's.
        UserError: it is of a newer format.
    """
    try:
        content = json.loads(retry((directory / NAME).read_bytes))
        expected = content.pop("sha256")
    except FileNotFoundError:
        raise Damaged(f"it has no {NAME}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _unless_away(directory, error)
        raise Damaged(f"its {NAME} cannot be read ({type(error).__name__})") from error
    if digest(content) != expected:
        raise Damaged(f"its {NAME} was altered")
    version = content["format_version"]
    if version > FORMAT:
        raise UserError(f"{directory}: format {version}, and this version reads up to {FORMAT}: update paradigm")
    if version < FORMAT:
        raise UserError(
            f"{directory}: format {version}, of an earlier version of paradigm whose parameters and settings had other "
            "names: go on with that version, or have it write the weights with launch.convert and start from those"
        )
    if str(content["step"]) != directory.name:
        raise Damaged(f"it holds step {content['step']}")
    return content


def verify(directory):
    """Raises Damaged unless every file of the manifest is there with its size and its bytes."""
    files = read(directory)["files"]
    measured = _measured([directory / name for name in files], filesystem.of(directory).AT_ONCE)
    for (name, (size, sha256)), found in zip(files.items(), measured):
        if isinstance(found, FileNotFoundError):
            raise Damaged(f"{name}: No such file or directory") from found
        if isinstance(found, OSError):
            _unless_away(directory, found)
            raise Damaged(f"{name}: {found.strerror or found}") from found
        found, digest = found
        if found != size:
            raise Damaged(f"{name} has {found} bytes instead of {size}")
        if digest != sha256:
            raise Damaged(f"{name} was altered: its sha256 differs")


def _measured(paths, at_once):
    """(bytes, sha256) of each file in turn, or the OSError with which reading it ended."""

    def one(path):
        try:
            return retry(_measure, path)
        except OSError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, paths))


def _measure(path):
    """(bytes, sha256) of a file."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


def digest(content):
    """sha256 (hex) of a manifest without its digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unless_away(directory, error):
    """Raises an error by which a bucket is out of reach: that is no damage, and an older checkpoint would not help."""
    if filesystem.remote(directory) and isinstance(error, OSError):
        raise error
