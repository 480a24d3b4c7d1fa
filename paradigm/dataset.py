"""Index-pure data sets: example(i) and batch(step) are functions of (seed, i) and of nothing that happened before.

A training stream has no end and no state: its position is a number. Restarts, worker counts and host counts therefore
cannot change it. What is random in an example comes from its ExampleRng, by (seed, index, who draws). A source is
anything with

    __len__()                                number of records
    __getitem__(position) -> dict            one record as numpy arrays; raises if the record is broken
    __getitems__(positions) -> list[dict]    the same for many at once (optional)
    fingerprint                              str that changes when any record does
    name(position) -> str                    what a warning calls that record (optional)
    changes_by_epoch                         True where records change with the epoch (optional): training then asks
                                             for place + len(source) * n, n < 2^31 drawn from (seed, epoch)

numpy alone is imported here, since data workers import it.
"""

import dataclasses
import hashlib
import math
import multiprocessing
import os
import signal
import threading
import zlib

import numpy as np

from paradigm.errors import UserError
from paradigm.schedule import FINAL
from paradigm.storage import retry

ROUNDS = 4  # of the shuffle's network, each of two halves
ATTEMPTS = 16  # draws for the place of a broken record before the source is given up
_EXAMPLE, _REPLACE, _EPOCH, _BATCH, _SHARE, _SHARED, _PART, _CHANGE = range(1, 9)  # what a hash is for


# ------------------------------------------------------------------------------------------------ hashing and shuffling


def mix64(*words):
    """uint64 hash of uint64 words (arrays of one broadcast shape, or ints): at least one-dimensional."""
    state = np.zeros(np.broadcast_shapes(*(np.shape(w) for w in words)) or (1,), np.uint64)
    for word in words:
        word = np.uint64(word & 0xFFFFFFFFFFFFFFFF) if isinstance(word, int) else np.asarray(word).astype(np.uint64)
        state = _finalise((state ^ word) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _finalise(x):
    """The finaliser of splitmix64 (Steele et al. 2014, and Stafford's variant 13): a bijection of uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def feistel(position, size, key):
    """A keyed permutation of range(size), evaluated at `position` without ever listing it.

    position: int array [N], each in [0, size). key: uint64 array [N] (or [1]). Returns int64 [N]. A Feistel network
    on the smallest power of two that holds `size`, walked along its cycle until it lands inside (fewer than two
    evaluations a position on average).
    """
    if size <= 2:  # one bit cannot be cut into two halves
        return (np.asarray(position, np.int64) + (key % np.uint64(size)).astype(np.int64)) % size
    bits = (size - 1).bit_length()
    right_bits = np.uint64(bits // 2)
    left_mask, right_mask = np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << (bits // 2)) - 1)
    x = np.atleast_1d(np.asarray(position)).astype(np.uint64)
    key = np.broadcast_to(np.asarray(key, np.uint64), x.shape)
    walking = np.arange(x.size)
    while walking.size:
        left, right, k = x[walking] >> right_bits, x[walking] & right_mask, key[walking]
        for _ in range(ROUNDS):
            left = left ^ (_finalise(k ^ right) & left_mask)
            right = right ^ (_finalise(~k ^ left) & right_mask)
            k = k + np.uint64(0x9E3779B97F4A7C15)
        x[walking] = left << right_bits | right
        walking = walking[x[walking] >= np.uint64(size)]
    return x.astype(np.int64)


class _Words(np.random.bit_generator.ISeedSequence):
    """Hands four ready 64-bit words to a bit generator: ten times as fast as numpy's SeedSequence."""

    def __init__(self, words):
        self.words = words

    def generate_state(self, n_words, dtype=np.uint32):
        assert n_words == 4 and dtype == np.uint64
        return self.words


def _seeds(*words):
    """uint64 [..., 4]: what a bit generator needs, for each element of the broadcast words."""
    return mix64(*(np.asarray(w)[..., None] if np.ndim(w) else w for w in words), np.arange(4, dtype=np.uint64))


def generators(*words):
    """One numpy Generator for each element of the broadcast words: a pure function of them."""
    return [np.random.Generator(np.random.PCG64(_Words(s))) for s in _seeds(*words).reshape(-1, 4)]


class ExampleRng(np.random.Generator):
    """The randomness of one example on the host. Nothing that somebody draws changes what another one gets.

    It is itself the stream of whoever it was handed to. `part(name)` is the same for a part of a combination, which
    draws apart from all others: two parts mask other tokens. `shared(name)` is a stream of that name, begun anew at
    each call and alike for all parts: what is chosen of the example itself, such as one of its captions, is then one
    choice.

    words: ints that tell the example apart. path: names of the parts that lead here.
    """

    def __init__(self, *words, path=(), seeds=None):
        marks = [x for name in path for x in (_PART, zlib.crc32(name.encode()))]
        super().__init__(np.random.PCG64(_Words(_seeds(*words, *marks) if seeds is None else seeds)))
        self._words, self._path = words, path

    def part(self, name):
        """The ExampleRng of a part of the combination."""
        return ExampleRng(*self._words, path=(*self._path, name))

    def shared(self, name):
        """A Generator that all parts which ask for this name have alike."""
        return np.random.Generator(np.random.PCG64(_Words(_seeds(*self._words, _SHARED, zlib.crc32(name.encode())))))


# ------------------------------------------------------------------------------------------------------------- datasets


@dataclasses.dataclass(frozen=True)
class Problem:
    """A record that could not be read: the global index that asked for it, its name, and the error's text."""

    index: int
    record: str
    error: str


class Mixture:
    """Several sources read as one, in shares that may change with the step.

    weights: one number or schedule (callable on an array of steps) for each source; only their ratio counts. Batch
    `step` holds floor or ceil of its exact share of each source, right in expectation, and each source is read epoch
    after epoch without repeats, whatever the others do. To evaluators, which index it, all records stand in one.

    Raises UserError if the weights do not match the sources or none is positive.
    """

    def __init__(self, sources, weights):
        self.sources, self.weights = tuple(sources), tuple(weights)
        if len(self.sources) != len(self.weights):
            raise UserError(f"a mixture of {len(self.sources)} sources has {len(self.weights)} weights: give each one")
        self.shares(np.zeros(1, np.int64))

    @property
    def fingerprint(self):
        return "+".join(f"{s.fingerprint}*{w!r}" for s, w in zip(self.sources, self.weights))

    def __len__(self):
        return sum(map(len, self.sources))

    def _at(self, position):
        for one in self.sources:
            if position < len(one):
                return one, int(position)
            position -= len(one)
        raise IndexError(position)

    def __getitem__(self, position):
        one, place = self._at(position)
        return one[place]

    def name(self, position):
        return _name(*self._at(position))

    def shares(self, steps):
        """float64 [steps, sources]: each source's part of those batches; rows sum to 1."""
        columns = [w(steps) if callable(w) else w for w in self.weights]
        table = np.stack([np.broadcast_to(np.asarray(c, np.float64), steps.shape) for c in columns], axis=1)
        wrong = ~(np.isfinite(table) & (table >= 0)).all(1) | ~(table.sum(1) > 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"mixture weights at step {steps[at]} are {table[at].tolist()}: "
                "they must be finite, not negative, and one at least above 0"
            )
        return table / table.sum(1, keepdims=True)


class Repeated:
    """A source whose records stand in a training stream so many times one after the other, each prepared by itself
    (Hoffer et al. 2020, "Augment Your Batch"; DeiT's repeated augmentation). An epoch is as many examples long."""

    def __init__(self, source, times):
        self.source, self.times = source, times

    @property
    def fingerprint(self):
        return f"{self.source.fingerprint}x{self.times}"

    def __len__(self):
        return len(self.source)

    def __getitem__(self, position):
        return self.source[position]

    def name(self, position):
        return _name(self.source, position)


class Dataset:
    """A source (or Mixture) with a preparation, cut into batches.

    source: see the top of this file. preprocess(example, rng, step, train) -> dict of arrays of fixed shapes; rng is an
    ExampleRng.
    batch_size: examples of the global batch. seed: int. train=True: endless, shuffled anew each epoch, a broken record
    replaced by a draw from (seed, i, attempt). train=False: every record once, in order, prepared as at the step FINAL;
    the last batch is padded, and rows of padding or of a broken record have mask 0.

    Raises UserError for an empty source or an impossible batch size.
    """

    def __init__(self, source, preprocess, batch_size, seed=0, train=True):
        self.source, self.preprocess, self.batch_size = source, preprocess, int(batch_size)
        self.seed, self.train = seed, train
        self.sources = source.sources if isinstance(source, Mixture) else (source,)
        self.sizes = tuple(len(s) for s in self.sources)
        self.times = source.times if train and isinstance(source, Repeated) else 1
        if self.batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1")
        if min(self.sizes) < 1:
            raise UserError(f"source {self.sizes.index(0)} of the data set has no records")
        self._counts = np.zeros((1, len(self.sources)), np.int64)  # [steps + 1, sources]: examples before each batch

    def __len__(self):
        """Batches of one evaluation; a training stream has no end, so no length."""
        if self.train:
            raise TypeError("a training stream has no length")
        return math.ceil(sum(self.sizes) / self.batch_size)

    @property
    def examples(self):
        """Number of records in all sources."""
        return sum(self.sizes)

    @property
    def fingerprint(self):
        """Changes whenever the stream of records would."""
        text = f"{self.source.fingerprint} {self.sizes} {self.batch_size} {self.seed} {self.train}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_copies(self, objective):
        """One line for a person where a batch must hold records more than once, "" where not.

        Raises UserError if they would be negatives of their own copies (see `Objective.contrasts`).
        """
        if self.times > 1 and objective.contrasts:
            raise UserError(
                f"each record stands {self.times} times in a batch, and {type(objective).__name__} takes the others of "
                "it for negatives, copies too: set ImageData.repeats = 1"
            )
        shares = self.source.shares(np.zeros(1, np.int64))[0] if isinstance(self.source, Mixture) else (1.0,)
        copies = [math.floor(share * self.batch_size) / size for share, size in zip(shares, self.sizes)]
        if max(copies) <= 1:
            return ""
        size = self.sizes[int(np.argmax(copies))]
        what = f"a batch of {self.batch_size:,} holds each of {size:,} records {max(copies):.3g} times"
        if objective.contrasts:
            raise UserError(
                f"{what}, and {type(objective).__name__} takes the others of a batch for negatives, copies too: make "
                f"Experiment.batch_size {size:,} or less, or add records"
            )
        return what

    def example(self, i):
        """Example `i` of the stream: a dict of arrays with `index` uint32 [2] and `mask` float32 []."""
        step, row = divmod(i, self.batch_size)
        return {name: array[0] for name, array in self.batch(step, [row]).items()}

    def batch(self, step, rows=slice(None)):
        """Those rows (slice or sequence) of global batch `step`, stacked: name -> [rows, ...]."""
        return self.read(step, rows)[0]

    def read(self, step, rows=slice(None)):
        """(batch, problems): `batch(step, rows)` and a tuple of what was wrong with its records."""
        rows = np.arange(self.batch_size)[rows if isinstance(rows, slice) else list(rows)]
        index = step * self.batch_size + rows
        which, position = self._locate(step, rows)
        records, problems = [None] * len(rows), []
        for k, source in enumerate(self.sources):
            chosen = np.flatnonzero(which == k)
            for row, record in zip(chosen, _fetch(source, position[chosen])):
                if isinstance(record, Exception):
                    problems.append(Problem(int(index[row]), _name(source, position[row]), f"{record}"))
                    record = self._replacement(k, int(index[row]), record, problems) if self.train else None
                records[row] = record
        mask = np.array([which[row] >= 0 and record is not None for row, record in enumerate(records)], np.float32)
        if not mask.any():  # nothing of this batch is real; its rows only need to have the right shapes
            spare = self._replacement(0, int(index[0]), "every record of this batch is broken", problems)
        else:
            spare = records[int(np.argmax(mask))]
        words = (self.seed, _EXAMPLE, int(self.train))
        rngs = (ExampleRng(*words, int(i), seeds=seeds) for i, seeds in zip(index, _seeds(*words, index)))
        batch = {}
        for row, (record, rng) in enumerate(zip(records, rngs)):
            own, record = records[row] is not None, spare if record is None else record
            try:
                prepared = self.preprocess(record, rng, step if self.train else FINAL, self.train)
            except UserError as error:
                if not own or int(index[row]) in {problem.index for problem in problems}:
                    raise  # of another record, which stands in for this one
                raise UserError(f"{_name(self.sources[which[row]], position[row])}: {error}") from error
            except KeyError as error:
                if error.args[0] in record:
                    raise
                raise UserError(
                    f"{type(self.preprocess).__name__} reads {error}, and {_name(self.sources[0], 0)} holds "
                    f"{', '.join(map(str, record))}: set Experiment.data to what the objective is trained on"
                ) from error
            if not batch:
                batch = {k: np.empty((len(rows),) + np.shape(v), np.asarray(v).dtype) for k, v in prepared.items()}
            for name, value in prepared.items():
                batch[name][row] = value
        batch["index"] = np.stack([index >> 32, index & 0xFFFFFFFF], axis=1).astype(np.uint32)
        batch["mask"] = mask
        return batch, tuple(problems)

    def _locate(self, step, rows):
        """Which source each row reads, and at which position: int64 [rows] twice. Source -1 is padding."""
        index = step * self.batch_size + rows
        if not self.train:
            ends = np.cumsum(self.sizes)
            which = np.searchsorted(ends, index, side="right")
            position = index - np.concatenate([[0], ends])[which]
            return np.where(index < ends[-1], which, -1), position
        if len(self.sources) == 1:
            which, rank = np.zeros_like(index), index // self.times
        else:
            before, after = self._shares_until(step)
            slot = feistel(rows, self.batch_size, mix64(self.seed, _BATCH, step))  # sources stand mixed in the batch
            ends = np.cumsum(after - before)
            which = np.searchsorted(ends, slot, side="right")
            rank = before[which] + slot - np.concatenate([[0], ends])[which]
        position = np.empty_like(index)
        for k in np.unique(which):
            chosen = which == k
            epoch, place = np.divmod(rank[chosen], self.sizes[k])
            position[chosen] = feistel(place, self.sizes[k], mix64(self.seed, _EPOCH, int(k), epoch))
            if getattr(self.sources[k], "changes_by_epoch", False):
                drawn = mix64(self.seed, _CHANGE, int(k), epoch) >> np.uint64(33)
                position[chosen] += self.sizes[k] * drawn.astype(np.int64)
        return which, position

    def _shares_until(self, step):
        """int64 [sources] twice: examples of each source before this batch, and before the next.

        Systematic sampling: one uniform number a batch cuts the cumulated shares, so that counts add up to the batch,
        differ from the exact share by less than one, and are right in expectation.
        """
        counts = self._counts
        if step + 1 >= len(counts):
            steps = np.arange(len(counts) - 1, max(step + 1, 2 * len(counts), 1024))
            uniform = (mix64(self.seed, _SHARE, steps) >> np.uint64(11)) * 2.0**-53
            ends = np.cumsum(self.source.shares(steps), axis=1) * self.batch_size
            ends = np.minimum(np.floor(ends + uniform[:, None]), self.batch_size)
            ends[:, -1] = self.batch_size
            taken = np.diff(ends, axis=1, prepend=0).astype(np.int64)
            counts = np.concatenate([counts, counts[-1] + np.cumsum(taken, axis=0)])
            self._counts = counts  # one assignment: threads may race, and then do the same work twice
        return counts[step], counts[step + 1]

    def _replacement(self, k, index, error, problems):
        """A readable record of source k drawn from (seed, index, attempt)."""
        source = self.sources[k]
        for attempt in range(ATTEMPTS):
            position = int(mix64(self.seed, _REPLACE, index, attempt)[0] % np.uint64(self.sizes[k]))
            [record] = _fetch(source, [position])
            if not isinstance(record, Exception):
                return record
            problems.append(Problem(index, _name(source, position), f"{record}"))
            error = record
        raise UserError(
            f"{ATTEMPTS} draws for the place of a broken record were broken too, the last one "
            f"{problems[-1].record if problems else ''} ({error}): the data are damaged, prepare them again"
        )


def _fetch(source, positions):
    """Records at these positions; an Exception stands where one cannot be read. UserError is not a damaged record."""
    positions = [int(p) for p in positions]
    if hasattr(source, "__getitems__"):
        try:
            return source.__getitems__(positions)
        except UserError:
            raise
        except Exception:  # one of them is broken: find out which
            pass
    records = []
    for position in positions:
        try:
            records.append(retry(source.__getitem__, position))
        except UserError:
            raise
        except Exception as error:
            records.append(error)
    return records


def _name(source, position):
    return source.name(int(position)) if hasattr(source, "name") else f"record {int(position)}"


def serve_parent(*_):
    """The first act of a process that works on data for another: leave Ctrl-C to the parent, and do not outlive it."""

    def watch():
        multiprocessing.parent_process().join()  # returns even if the parent was killed
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
