"""The files of a run that are appended to and renamed, where the run is kept in a bucket, which can do neither.

The run then works on a directory of this machine: process 0 brings the bucket's files there at the start, and pushes
those that changed at evaluations, before each checkpoint's commit, and at the end. So whatever a checkpoint says was
written is in the bucket before the checkpoint is; rows after it are of steps that will be taken again. The bucket is
the truth: what lies here from an earlier start is replaced. Only data/, which can be prepared again, stays here.

On a disk the run works where it is kept, and nothing is brought or pushed.
"""

import contextlib
import hashlib
import logging
import pathlib
import shutil
import tempfile
import threading

import jax

from launch.storage import filesystem
from paradigm import storage
from paradigm.storage import expand, retry

STAGING = "~/.cache/paradigm/runs"
# The first two are written straight into the bucket, the others stay on this machine.
APART = ("checkpoints", "frozen", "data", "run.lock")

_log = logging.getLogger(__name__)


def local(workdir):
    """The directory on this machine for the files of a run: the run's own on a disk. One for each process of a host."""
    if not filesystem.remote(workdir):
        return workdir
    name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    return expand(STAGING) / name / str(jax.process_index())


class WorkdirSync:
    """The files of a run directory (as `filesystem.as_path` gives it) on this machine, kept in sync
    with it while the run lasts. Use it in `with`.

    local: where they are. Only process 0 has files to bring and to push.

    Raises:
        UserError: on entering, the bucket cannot be read.
    """

    def __init__(self, workdir):
        self.workdir, self.local = workdir, local(workdir)
        self._works = filesystem.remote(workdir) and jax.process_index() == 0
        self._known, self._lock = {}, threading.Lock()  # {name: (size, time) of what the bucket has}

    def __enter__(self):
        if filesystem.remote(self.workdir):
            self.local.mkdir(parents=True, exist_ok=True)
            for path in self.local.iterdir():
                if path.name not in APART:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._works:
            with filesystem.explained(self.workdir):
                bring(self.workdir, self.local)
            self._known = self._found()
        return self

    def __exit__(self, *_):
        self.offer()

    def push(self):
        """Makes the bucket's files those of this machine. Raises what the bucket's libraries raise."""
        if not self._works:
            return
        with self._lock:  # a commit and an evaluation may come together
            found = self._found()
            for name in self._known.keys() - found.keys():
                filesystem.Bucket.remove(self.workdir / name)
                del self._known[name]
            for name in sorted(name for name in found if found[name] != self._known.get(name)):
                retry((self.workdir / name).write_bytes, (self.local / name).read_bytes())
                self._known[name] = found[name]

    def offer(self):
        """`push`, where it can wait: a bucket out of reach is a warning, for the next push has it all."""
        try:
            self.push()
        except Exception as error:
            if not storage.is_storage(error):
                raise
            _log.warning("%s: not all files are up to date there: %s", self.workdir, " ".join(str(error).split()))

    def _found(self):
        """{name: (size, time)} of the files here, the half-written ones left out."""
        found = {}
        for path in self.local.rglob("*"):
            name = path.relative_to(self.local)
            if name.parts[0] not in APART and path.suffix != ".tmp" and path.is_file():
                stat = path.stat()
                found[name.as_posix()] = (stat.st_size, stat.st_mtime_ns)
        return found


def bring(source, directory):
    """Copies the files of a directory in a bucket to one here, but for APART."""

    def one(path):
        to = directory / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(retry(path.read_bytes))

    filesystem.Bucket.each(one, filesystem.Bucket.files_but(source, APART))


@contextlib.contextmanager
def at_hand(path):
    """A directory as one on this machine, for as long as the `with` lasts: itself on a disk, a copy from a bucket.

    Raises UserError when the bucket cannot be read.
    """
    if not filesystem.remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        with filesystem.explained(path):
            bring(path, pathlib.Path(directory))
        yield pathlib.Path(directory)
