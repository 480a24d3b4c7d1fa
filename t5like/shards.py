"""The files of a preparation: shards of records, and the record of the job that wrote them.

A shard appears under its own name only when it is whole (written aside, synced, renamed), a job's record of size and
SHA-256 follows its shards. So what is there is whole, whoever was killed when.
"""

import concurrent.futures.process
import contextlib
import hashlib
import json
import uuid

from paradigm.errors import UserError
from paradigm.names import SPLITS
from paradigm.storage import aside_of, commit, replace

WRITER = "group_size:1,zstd:1"  # one record a chunk: random access decompresses nothing else


class Shard:
    """One file of records, written aside; `close` puts it in its place. counts: what it holds."""

    def __init__(self, path, **counts):
        self.path, self.writer, self.counts = path, None, counts
        # Of a name of its own: a runner that has lost sight of a job may begin it again while it is still under way.
        self.aside = aside_of(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}"))

    def write(self, raw):
        if self.writer is None:
            from array_record.python.array_record_module import ArrayRecordWriter

            self.writer = ArrayRecordWriter(str(self.aside), WRITER)
        self.writer.write(raw)

    def close(self):
        """Finishes the file; a record of it, or of its absence where nothing was written."""
        if self.writer is None:
            return {"file": None, "bytes": 0, "sha256": None, "counts": self.counts}
        self.writer.close()
        commit(self.aside, self.path)
        size = self.path.stat().st_size
        return {"file": self.path.name, "bytes": size, "sha256": sha256(self.path), "counts": self.counts}


def finished(job, jobs, plan, out):
    """The record of a job that an earlier run finished, if its files are still what it says; else None."""
    try:
        record = json.loads((out / record_name(job, jobs)).read_text())
    except (OSError, ValueError):
        return None
    if record.get("plan") != digest(plan):
        return None
    if all(is_whole(out, record[split]) for split in SPLITS if record.get(split, {}).get("file")):
        return record
    return None


def is_whole(out, shard):
    """Whether a shard is what its record says."""
    path = out / shard["file"]
    return path.exists() and path.stat().st_size == shard["bytes"] and sha256(path) == shard["sha256"]


def shard_name(split, job, jobs):
    return f"{split}-{job:05d}-of-{jobs:05d}.array_record"


def record_name(job, jobs):
    return f"done-{job:05d}-of-{jobs:05d}.json"


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    replace(path, f"{json.dumps(value, indent=1)}\n".encode())


class Interrupted(UserError):
    """What has nothing to do with the data: what is finished is kept, and the same preparation goes on from there."""


@contextlib.contextmanager
def errors_as_user_errors(out):
    """What a disk can do to us, and a worker that was killed, as one line each."""
    try:
        yield
    except concurrent.futures.process.BrokenProcessPool as error:
        raise Interrupted(
            f"{out}: a worker process died, perhaps for lack of memory: run it again with fewer workers; what "
            "is finished is kept"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None)
        if isinstance(error, RuntimeError):  # how ArrayRecord tells what the system said
            if "() failed: " not in str(error):
                raise
            reason = str(error).partition("() failed: ")[2].partition(";")[0]
        raise Interrupted(
            f"{out}: cannot be written ({reason}): free some space, or give another directory; what is finished is kept"
        ) from error
