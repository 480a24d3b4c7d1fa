"""Where a run is kept: a directory on a disk, or one in a bucket, gs://bucket/run; and in what the two differ.

`as_path` makes of a path or a URL an object with pathlib's `/`, name, parent, open and read_bytes. What those do not do
alike, `of(place)` does: Disk or Bucket. A bucket holds objects by name, each whole or not there. It knows no rename, no
appending and no directories, so a checkpoint is written where it stays, and its manifest, written last, commits it:

    on a disk      N.tmp/..., N.tmp/manifest.json, then the rename to N
    in a bucket    N/..., then N/manifest.json; an N without one is not a checkpoint, and goes with the next save
"""

import concurrent.futures
import contextlib
import errno
import functools
import logging
import os
import re
import shutil

from paradigm import storage
from paradigm.errors import UserError
from paradigm.storage import retry

MANIFEST = "manifest.json"  # the mark of a directory that is whole
UNFINISHED = ".tmp"  # N.tmp: not committed yet
DISCARDED = ".old"  # N.old: no longer a checkpoint, on its way out
SILENCE = 20.0  # seconds without a byte from a bucket until a request is given up, and made again


def as_path(where):
    """A path, or the URL of a directory in a bucket, as a Path: pathlib's, or etils' with the same methods.

    Raises:
        UserError: a URL of another kind, no library for this one, or a bucket that this machine cannot list.
    """
    if not remote(where):
        return storage.expand(where)
    scheme, _, rest = str(where).partition("://")
    bucket = rest.split("/")[0]
    if scheme != "gs" or not bucket:
        raise UserError(f"{where}: write a path, or gs://BUCKET/RUN; other stores can be mounted and given by path")
    _reach(bucket)
    from etils import epath

    return epath.Path(str(where))


def remote(where):
    """Whether this is a URL and not a path."""
    return "://" in str(where)


def of(where):
    """Disk or Bucket."""
    return Bucket if remote(where) else Disk


@contextlib.contextmanager
def explained(where):
    """Makes one line of what a bucket's libraries raise; what a disk raises passes as it is."""
    try:
        yield
    except Exception as error:
        if not remote(where) or not storage.is_storage(error):
            raise
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{where} cannot be used: {text}; does this machine reach it, and has it the right to (gcloud auth "
            "application-default login)?"
        ) from error


def reason(error):
    """One line for an I/O error, which tensorstore buries in a long text of its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({error.filename})" if error.filename else "")
    text = " ".join(str(error).split())
    code = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(code[1])) if code else text[:300] or type(error).__name__


class Disk:
    """A directory of checkpoints on a file system."""

    AT_ONCE = 1  # files that are read at a time

    @staticmethod
    def absolute(path):
        return path.absolute()

    @staticmethod
    def files(directory):
        """Every file below, in order."""
        return sorted(path for path in directory.rglob("*") if path.is_file())

    sync = staticmethod(storage.sync)

    @classmethod
    def sync_names(cls, directory):
        """Makes durable which files are in a directory and below it."""
        for folder, _, _ in os.walk(directory):
            retry(cls.sync, folder)

    put = staticmethod(storage.replace)

    @staticmethod
    def steps(directory):
        """The numbered directories, whole or not, ascending."""
        if not directory.is_dir():
            return []
        return _numbers(path.name for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())

    @classmethod
    def begin(cls, directory, step, needed):
        """Makes ready for a save. Raises OSError when the disk is plainly too full, before anything is written."""
        directory.mkdir(parents=True, exist_ok=True)
        cls.sweep(directory)
        free = shutil.disk_usage(directory).free
        if free < needed:
            text = f"{os.strerror(errno.ENOSPC)}: {needed:,} bytes are needed and {free:,} are free"
            raise OSError(errno.ENOSPC, text)

    @staticmethod
    def unfinished(directory, step):
        """Where a save writes."""
        return directory / f"{step}{UNFINISHED}"

    @classmethod
    def commit(cls, directory, step):
        """Makes a checkpoint of what a save wrote."""
        final = directory / str(step)
        if final.exists():  # of another future: this run was restored from an earlier step
            cls.discard(directory, step)
        retry(os.rename, cls.unfinished(directory, step), final)
        retry(cls.sync, directory)

    @staticmethod
    def discard(directory, step):
        """Unnames a checkpoint in one move, so that a half-deleted one is never taken for a damaged one."""
        old = directory / f"{step}{DISCARDED}"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory / str(step), old)

    @staticmethod
    def sweep(directory):
        """Removes what interrupted saves and deletions left behind."""
        for path in directory.iterdir():
            if path.suffix in (UNFINISHED, DISCARDED) and path.stem.isdecimal():
                shutil.rmtree(path, ignore_errors=True)


class Bucket:
    """The same of a directory in a bucket. Each call that lists does it anew: another process may have written."""

    AT_ONCE = 16  # one after the other, files would wait for the network more than they use it

    @staticmethod
    def absolute(path):
        return path

    @staticmethod
    def files(directory):
        root = str(directory).removeprefix("gs://")
        names = retry(_gcs().find, root)
        return sorted(directory / name.removeprefix(f"{root}/") for name in names if name.startswith(f"{root}/"))

    @classmethod
    def files_but(cls, directory, apart):
        """The files below, but for what lies in the directories named: those are not even listed."""
        root = str(directory).removeprefix("gs://")
        try:
            top = retry(functools.partial(_gcs().ls, root, detail=True))
        except FileNotFoundError:
            return []
        found = []
        for entry in top:
            path = directory / entry["name"].rsplit("/", 1)[-1]
            if entry["type"] != "directory":
                found.append(path)
            elif path.name not in apart:
                found += cls.files(path)
        return found

    @staticmethod
    def sync(path):
        """Nothing: an object that was written is durable."""

    sync_names = sync

    @staticmethod
    def put(path, content):
        retry(path.write_bytes, content)

    @classmethod
    def steps(cls, directory):
        """Those that have a manifest: another was never finished, or is on its way out."""
        return _numbers(path.parent.name for path in cls.files(directory) if _marks(path, directory))

    @classmethod
    def begin(cls, directory, step, needed):
        if step in cls.steps(directory):  # of another future, in whose place this one is written
            cls.discard(directory, step)
        cls.sweep(directory)

    @staticmethod
    def unfinished(directory, step):
        return directory / str(step)

    @staticmethod
    def commit(directory, step):
        """Nothing: the manifest was the mark."""

    @classmethod
    def discard(cls, directory, step):
        """The manifest goes first; `sweep` takes the rest."""
        cls.remove(directory / str(step) / MANIFEST)

    @classmethod
    def sweep(cls, directory):
        files = cls.files(directory)
        whole = {path.parent for path in files if _marks(path, directory)}
        step = lambda path: path.relative_to(directory).parts[0]
        cls.each(cls.remove, [path for path in files if _numbers([step(path)]) and directory / step(path) not in whole])

    @staticmethod
    def remove(path):
        """Removes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            retry(_gcs().rm_file, str(path))

    @classmethod
    def each(cls, call, paths):
        """call(path) for each, several at a time."""
        with concurrent.futures.ThreadPoolExecutor(cls.AT_ONCE) as pool:
            list(pool.map(call, paths))


def _numbers(names):
    """Those of the names that are steps, as int, ascending."""
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _marks(path, directory):
    """Whether this is the manifest of a numbered directory in `directory`."""
    return path.name == MANIFEST and path.parent.parent == directory


@functools.cache
def _gcs():
    """gcsfs's file system, the one that etils and Orbax use too."""
    try:
        import aiohttp
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError('gs:// needs gcsfs: pip install -e ".[gcs]" in the checkout') from error
    os.environ.setdefault("EPATH_USE_TF", "false")  # etils would prefer TensorFlow, where that is installed
    for name in ("fsspec", "gcsfs", "google.auth"):  # every failure is raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A listing may not be older than the question. Left alone, gcsfs would wait for ever where nobody answers, and try
    # one credential after the other, a pickle in the home directory and nobody's among them.
    settings = fsspec.config.conf.setdefault("gcs", {})
    settings.setdefault("use_listings_cache", False)
    settings.setdefault("requests_timeout", aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE))
    settings.setdefault("token", "anon" if "STORAGE_EMULATOR_HOST" in os.environ else "google_default")
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils asks for it


@functools.cache
def _reach(bucket):
    """Raises UserError unless the bucket is there and can be listed; asked once a bucket."""
    with explained(f"gs://{bucket}"):
        try:
            _gcs().call("GET", "b/{}/o", bucket, maxResults=1)
        except FileNotFoundError:
            raise UserError(f"gs://{bucket}: no such bucket; create it, or correct the name") from None
