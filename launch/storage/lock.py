"""One run holds a directory at a time: a second one is told instead of writing into the first one's files.

The lock is the operating system's, on a file of the directory, and goes with the process that holds it however it ends:
after kill -9 the same command goes on at once. It sees other hosts where the file system does (NFS from version 4).
A run in a bucket is locked by its directory on this machine, so that other hosts are not seen.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time

from paradigm.errors import UserError

NAME = "run.lock"
PATIENCE = 3.0  # seconds for a process that is ending; ten times as many for another host, which may be gone
_held, _guard = set(), threading.Lock()  # the operating system does not tell threads of one process apart


@contextlib.contextmanager
def locked(directory, called=None):
    """Holds the directory, which is made if need be, and taken away again if nothing came into it.

    Args:
        directory: a pathlib.Path of this machine. called: what to call it in the error.

    Raises:
        UserError: another run holds it; who, where and since when.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    key = str(directory.resolve())
    with _guard:
        if key in _held:
            raise UserError(f"--workdir={called or directory} is in use by another run of this process")
        _held.add(key)
    file = None
    try:
        file = _acquire(path, called or directory)
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            file.close()
        with _guard:
            _held.discard(key)
        if made:
            with contextlib.suppress(OSError):  # something is in it
                directory.rmdir()


def _acquire(path, called):
    """The open file, locked; None where the file system has no locks."""
    begin = time.monotonic()
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            file.close()
            patience = PATIENCE if holder.get("host") == socket.gethostname() else 10 * PATIENCE
            if time.monotonic() - begin > patience:
                raise UserError(
                    f"--workdir={called} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}, "
                    f"since {holder.get('since', '?')}: wait until it ends, end it, or take another directory"
                    + ("" if patience == PATIENCE else f"; if that host is lost, remove {path}")
                ) from None
            time.sleep(0.1)
            continue
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        if _is(file, path):
            break
        file.close()  # the one before took its file away meanwhile
    file.truncate(0)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
    file.flush()
    return file


def _is(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file):
    """What the process that has the lock wrote."""
    try:
        file.seek(0)
        return json.loads(file.read())
    except (OSError, ValueError):
        return {}
