"""The data loader: batches on the host, ahead of time. Grain runs the data set in threads or processes; the data set
says what comes.

The element that Grain sees is a whole batch, a function of its step, so any number of workers gives the same batches in
the same order, and to resume is to start at another step. Grain's own iterator state is never used.
"""

import sys
import weakref

import grain
from absl import flags

from paradigm.dataset import serve_parent

SHARED = 1 << 24  # bytes from which an array travels in shared memory
ENDLESS = 1 << 48  # steps; as good as no end


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


def batches(dataset, start_step=0, rows=slice(None), workers=0, prefetch=4):
    """Batches of a paradigm.dataset.Dataset from `start_step` on, read ahead.

    rows: which rows of the global batch this process needs (slice or sequence of ints). workers: processes that make
    batches; 0 makes them in a thread of this one. prefetch: batches that each worker (or the thread) keeps ready.
    A training stream never ends; an evaluation ends after its last batch.
    """
    if not isinstance(rows, slice):
        rows = tuple(int(r) for r in rows)
    steps = grain.MapDataset.source(_Steps(dataset, start_step, rows))
    if not workers:
        return Batches(iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))))
    if not flags.FLAGS.is_parsed():  # Grain's processes read flags; in a notebook nobody has parsed any
        flags.FLAGS.mark_as_parsed()
    ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    # By the pipe, not in shared memory: blocks left over at the end would be leaked with a warning at exit.
    ahead = grain.experimental.WithOptionsIterDataset(ahead, grain.experimental.DatasetOptions(min_shm_size=SHARED))
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return Batches(iter(ahead.mp_prefetch(processes, serve_parent)))
