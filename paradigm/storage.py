"""Storage: paths as people write them, files that are whole or not there, and retry of what fails in passing."""

import contextlib
import errno
import os
import pathlib
import re
import time

from paradigm.errors import UserError

# Errors of a file system or a connection that are transient. A full disk, a missing file or a lack of rights stays.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in "EIO EAGAIN EINTR EBUSY ESTALE ETIMEDOUT ECONNRESET ECONNABORTED ECONNREFUSED EPIPE ENETDOWN "
    "ENETUNREACH EHOSTDOWN EHOSTUNREACH EREMOTEIO".split()
    if hasattr(errno, name)
)
BUSY = frozenset({408, 429, 500, 502, 503, 504})  # a store's transient answers, as HTTP status
CLIENTS = frozenset({"aiohttp", "fsspec", "gcsfs", "google", "requests"})  # through which buckets are reached
WAITS = (0.5, 2.0, 8.0)  # seconds before the second try, the third and the fourth


def is_transient(error):
    """Whether a failure is transient: the same call may well succeed a little later.

    By an OSError's number, a store's HTTP status, or tensorstore's text of either; and where a connection has failed
    without a number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT
    text = str(error)
    if code := re.search(r"os_error_code='(\d+)'", text):
        return int(code[1]) in TRANSIENT
    status = getattr(error, "code", None)  # gcsfs
    if code := re.search(r"http_response_code='(\d+)'", text):  # tensorstore
        status = int(code[1])
    if isinstance(status, int):
        return status in BUSY
    if isinstance(error, (ConnectionError, TimeoutError)) or _library(error) in ("aiohttp", "requests"):
        return True
    return bool(re.match(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b", text))


def is_storage(error):
    """Whether an exception speaks of storage, a disk or a bucket, rather than of a mistake in a program."""
    return isinstance(error, OSError) or _library(error) in CLIENTS


def unreadable(error):
    """The onerror of os.walk, which else leaves out without a word what it cannot read. Raises UserError."""
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): mend its rights, or leave it out") from error


def _library(error):
    return type(error).__module__.split(".")[0]


def retry(call, *args, waits=None):
    """call(*args), with backoff: tried again after each of the waits (default WAITS) while its failure is transient."""
    for wait in WAITS if waits is None else waits:
        try:
            return call(*args)
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(wait)
    return call(*args)


def sync(path):
    """Makes the content of a file, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def commit(aside, path):
    """Gives what was written at `aside`, a file or a directory of files, the name `path` in one move, durable."""
    for each in (*(aside.iterdir() if aside.is_dir() else ()), aside):
        retry(sync, each)
    retry(os.replace, aside, path)
    retry(sync, path.parent)


def aside_of(path):
    """Where `path` is written until it is whole: N.tmp beside N."""
    return path.with_name(f"{path.name}.tmp")


@contextlib.contextmanager
def replacing(path):
    """A binary file to write. `path` is the old file or the new one at any moment: the new one when the block ends."""
    with open(aside_of(path), "wb") as file:
        yield file
    commit(aside_of(path), path)


def replace(path, content):
    """Writes bytes so that the file is the old one or the new one at any moment, and durable."""
    retry(aside_of(path).write_bytes, content)
    commit(aside_of(path), path)


def expand(path):
    """A path as a person writes it, ~ included, as a pathlib.Path: the one rule for whatever is given by hand.

    Raises UserError for the home of somebody whom this machine does not know.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home directory: write the whole path") from None


def here(path):
    """`expand` of what is read or written on this machine. UserError for a URL, else a folder's name."""
    if "://" in str(path):
        raise UserError(f"{path}: a path on this machine is wanted, and no URL: copy it here, or mount it")
    return expand(path)
