"""The data loader: batches on the host, ahead of time. Grain runs the data set in threads or processes; the data set
says what comes.

The element that Grain sees is a whole batch, a function of its step, so any number of workers gives the same batches in
the same order, and to resume is to start at another step. Grain's own iterator state is never used.
"""

import math
import sys
import time
import weakref

import grain
from absl import flags

from paradigm.dataset import serve_parent

SHARED = 1 << 24  # bytes from which an array travels in shared memory
ENDLESS = 1 << 48  # steps; as good as no end
THREADS = 32  # that read at once, at most
SLOW = 0.02  # seconds that a batch may wait for storage before more than one does


class _Steps(grain.sources.RandomAccessDataSource):
    """Element k is (batch, problems) of step start + k."""

    def __init__(self, dataset, start, rows):
        self.dataset, self.start, self.rows = dataset, start, rows

    def __len__(self):
        return (ENDLESS if self.dataset.train else len(self.dataset)) - self.start

    def __getitem__(self, k):
        return self.dataset.read(self.start + int(k), self.rows)

    def __repr__(self):
        return f"steps from {self.start}"


class Batches:
    """Iterator over batches (dicts of numpy arrays); use it in `with`, or call close().

    problems: how often a broken record was met so far. Each record is named on stderr once, up to NAMED of them, and
    their number at the end.
    """

    NAMED = 20

    def __init__(self, iterator):
        # Held where an exit hook can close it and let go of it: Grain complains of iterators that outlive its modules.
        self._held = [iterator]
        self._close = weakref.finalize(self, _close, self._held)
        self.problems, self._named = 0, set()

    def __iter__(self):
        return self

    def __next__(self):
        if not self._held:
            raise StopIteration
        batch, problems = next(self._held[0])
        for problem in problems:
            self.problems += 1
            if problem.record not in self._named and len(self._named) < self.NAMED:
                self._named.add(problem.record)
                last = "; no more are named" if len(self._named) == self.NAMED else ""
                print(f"warning: {problem.record} is broken and left out ({problem.error}){last}", file=sys.stderr)
        return batch

    def close(self):
        """Ends threads and processes. Further calls do nothing."""
        if self._held and self.problems > len(self._named):
            print(f"warning: broken records were met and left out {self.problems} times in all", file=sys.stderr)
        self._close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _close(held):
    held.pop().close()


def reading_threads(dataset, step=0, rows=slice(None)):
    """How many batches of a training Dataset to read at once, so that the processor need not wait for storage: one, and
    as many as it could make in the time for which one batch waits, by a measurement.

    A disk, whose pages are in memory after the first read, takes one; NFS or a mounted bucket with 50 ms a read many.
    """
    try:
        for further in range(2):  # the first read opens files
            begin, computed = time.perf_counter(), time.thread_time()
            dataset.read(step + further, rows)
            computed = time.thread_time() - computed
            waited = time.perf_counter() - begin - computed
    except Exception:  # said where it is met again
        return 1
    return 1 if waited < SLOW else min(THREADS, 1 + math.ceil(waited / max(computed, 1e-3)))


def batches(dataset, start_step=0, rows=slice(None), workers=0, prefetch=4, threads=1):
    """Batches of a paradigm.dataset.Dataset from `start_step` on, read ahead.

    rows: which rows of the global batch this process needs (slice or sequence of ints). workers: processes that make
    batches; 0 makes them in threads of this one. threads: of this process, or of each worker. prefetch: batches that
    each worker (or this process) keeps ready; as many as there are threads, at least.
    A training stream never ends; an evaluation ends after its last batch.
    """
    if not isinstance(rows, slice):
        rows = tuple(int(r) for r in rows)
    steps = grain.MapDataset.source(_Steps(dataset, start_step, rows))
    several = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    if not workers:
        return Batches(iter(steps.to_iter_dataset(several)))
    if not flags.FLAGS.is_parsed():  # Grain's processes read flags; in a notebook nobody has parsed any
        flags.FLAGS.mark_as_parsed()
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    ahead = steps.to_iter_dataset(alone if threads == 1 else several)
    # By the pipe, not in shared memory: blocks left over at the end would be leaked with a warning at exit.
    ahead = grain.experimental.WithOptionsIterDataset(ahead, grain.experimental.DatasetOptions(min_shm_size=SHARED))
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return Batches(iter(ahead.mp_prefetch(processes, serve_parent)))
