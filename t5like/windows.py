"""A prepared directory and its windows of tokens: what launch.prepare writes and training reads.

It holds meta.json (written last: its presence means that all the rest is whole), tokenizer/, and ArrayRecord shards
`train-00000-of-00007.array_record`, `valid-...`. One record is one window: W tokens in the smallest unsigned type that
holds the vocabulary, then the uint32 places at which another document begins, then, for a window that its text does not
fill, the number of tokens it has.
"""

import functools
import json
import pathlib

import numpy as np

from paradigm.errors import UserError
from paradigm.records import Prepared, Shards
from t5like.tokenizers import load_tokenizer

FORMATS = {"windows": "paradigm-text-1", "records": "paradigm-text-records-2"}
META = "meta.json"


class PreparedText(Prepared):
    """A prepared directory, opened.

    window: tokens a window. tokenizer. meta: what meta.json says (counts of documents, tokens, bytes, padding).
    reads: tokens of a window that the objective reads, None for all: held-out windows are cut into pieces of so many,
    so that each of their tokens is evaluated once. shift_windows: read the training text as ShiftedWindows. Raises
    UserError if the directory is not whole.
    """

    def __init__(self, directory, reads=None, shift_windows=False):
        self.directory, self.reads, self.shift_windows = pathlib.Path(directory), reads, shift_windows
        self.meta = read_meta(self.directory)
        self.window = self.meta["settings"]["window"]
        self.fingerprint = self.meta["fingerprint"]
        check_shards(self.directory, self.meta)

    @property
    def name(self):
        return str(self.directory)

    @functools.cached_property
    def tokenizer(self):
        return load_tokenizer(self.directory / "tokenizer")

    def source(self, split="train"):
        """The windows of 'train' or 'valid', as a source for paradigm.dataset.Dataset."""
        shards = self.meta["shards"][split]
        if not shards:
            raise UserError(f"{self.directory} has no {split} windows: prepare it with --valid above 0")
        windows = WindowSource(
            tuple(str(self.directory / s["file"]) for s in shards),
            tuple(s["windows"] for s in shards),
            self.window,
            self.meta["dtype"],
            {name: getattr(self.tokenizer, name) for name in ("byte_lengths", "sentence_ends", "word_starts")},
            self.tokenizer.vocabulary,
            f"{self.fingerprint}/{split}",
        )
        if split == "train":
            return ShiftedWindows(windows) if self.shift_windows else windows
        return windows if self.reads in (None, self.window) else CutWindows(windows, self.reads)


class WindowSource:
    """Random access to the windows of some shards; picklable, since files are opened when first read.

    A record is {"tokens": int32 [W], "segments": int32 [W] (1, 2 .. the window's documents, 0 padding), "byte_lengths":
    float32 [vocabulary], "sentence_ends" and "word_starts": bool [vocabulary]}, the last three alike in every record.
    """

    def __init__(self, paths, counts, window, dtype, of_ids, vocabulary, fingerprint):
        self.pad, self.end = padding(vocabulary), vocabulary.end
        self.shards = Shards(paths, counts, "window", file_reader_buffer_size=1 << 12)
        self.window, self.dtype = window, np.dtype(dtype)
        self.of_ids, self.fingerprint = of_ids, fingerprint
        self._one_document = np.ones(window, np.int32)
        self._one_document.flags.writeable = False

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._one_document.flags.writeable = False

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, position):
        return self._decode(self.shards[position])

    def __getitems__(self, positions):
        return [self._decode(raw) for raw in self.shards.read(positions)]

    def name(self, position):
        return self.shards.name(position)

    def _decode(self, raw):
        tokens, segments = decode_window(raw, self.window, self.dtype, self._one_document, self.pad)
        return {"tokens": tokens, "segments": segments, **self.of_ids}


class CutWindows:
    """The windows of a source in pieces of `length` tokens, none of them twice; the last piece of each has padding.

    A source like it: records are those of a WindowSource with [length] tokens. A piece of padding alone is left out.
    """

    def __init__(self, windows, length):
        self.windows, self.length = windows, length
        self.pieces = -(-windows.window // length)  # of a full window
        filled = np.full(len(windows), self.pieces)
        for last in np.cumsum(windows.shards.counts) - 1:  # the only one of a file that may have padding
            filled[last] = -(-np.count_nonzero(windows[int(last)]["segments"]) // length)
        self._ends = np.cumsum(filled)
        self.fingerprint = f"{windows.fingerprint}[{length}]"

    def __len__(self):
        return int(self._ends[-1])

    def _find(self, position):
        """(which window, which piece of it)."""
        window = int(np.searchsorted(self._ends, position, side="right"))
        return window, int(position) - (int(self._ends[window - 1]) if window else 0)

    def __getitem__(self, position):
        window, piece = self._find(position)
        record = self.windows[window]
        cut = slice(piece * self.length, (piece + 1) * self.length)
        tokens, segments = record["tokens"][cut], record["segments"][cut]
        missing = (0, self.length - len(tokens))
        filler = self.windows.pad or 0
        return {
            **record,
            "tokens": np.pad(tokens, missing, constant_values=filler),
            "segments": np.pad(segments, missing),
        }

    def name(self, position):
        window, piece = self._find(position)
        return f"{self.windows.name(window)}, piece {piece}"


class ShiftedWindows:
    """The windows of a source, cut anew in every epoch: W apart as before, but all begun at another token.

    A source like it, of as many records. Position place + len * n is the window that begins n % W tokens after the
    beginning of window `place`; a file is read as a ring, its last window going on with its first tokens, as another
    document. So each n gives every token of a file once, and n = 0 the windows as they are stored.
    """

    changes_by_epoch = True

    def __init__(self, windows):
        self.windows = windows
        self._ends = np.cumsum(windows.shards.counts)  # of the files
        self.fingerprint = f"{windows.fingerprint}, shifted"

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, position):
        return self.__getitems__([position])[0]

    def __getitems__(self, positions):
        n, places = np.divmod(np.asarray(positions, np.int64), len(self.windows))
        ends = self._ends[np.searchsorted(self._ends, places, side="right")]
        starts = np.concatenate([[0], self._ends])[np.searchsorted(self._ends, ends)]
        following = np.where(places + 1 < ends, places + 1, starts)
        read = self.windows.__getitems__([*places.tolist(), *following.tolist()])
        shifts = (n % self.windows.window).tolist()
        pairs = zip(read[: len(places)], read[len(places) :], shifts, (following == starts).tolist())
        return [self._join(*pair) if pair[2] else pair[0] for pair in pairs]

    def _join(self, record, following, shift, around):
        """A record of the tokens from `shift` on, and the `shift` first of the window that follows.

        around: whether that is the first of the file: a document then begins there, as after an end of one.
        """
        begins = around or record["tokens"][-1] == self.windows.end
        tokens = np.concatenate([record["tokens"][shift:], following["tokens"][:shift]])
        before, after = record["segments"][shift:], following["segments"][:shift]
        after = np.where(after > 0, after + record["segments"].max() - (0 if begins else 1), 0)
        segments = np.concatenate([before, after])
        real = segments > 0  # padding inside moves to the end
        tokens, segments = tokens[real], segments[real] - segments[real][0] + 1
        missing = (0, self.windows.window - len(tokens))
        return {
            **record,
            "tokens": np.pad(tokens, missing, constant_values=self.windows.pad or 0),
            "segments": np.pad(segments, missing),
        }

    def name(self, position):
        n, place = divmod(position, len(self.windows))
        shift = n % self.windows.window
        return f"{self.windows.name(place)}" + (f", from its token {shift} on" if shift else "")


def padding(vocabulary):
    """The id that stands for padding in a window alone; None where the vocabulary has no such id."""
    return vocabulary.pad if vocabulary.pad != vocabulary.end else None


def encode_window(tokens, starts, window, dtype, pad=0):
    """Bytes of one window. tokens: int [n], n <= window. starts: places in (0, n) at which a document begins.

    pad: the id after the tokens; None: 0, and the number of tokens stands twice, since 0 may be text.
    """
    padded = np.full(window, pad or 0, dtype)
    padded[: len(tokens)] = tokens
    ends = [len(tokens)] * ((2 if pad is None else 1) if len(tokens) < window else 0)
    marks = np.concatenate([starts, ends])
    return padded.tobytes() + marks.astype("<u4").tobytes()


def decode_window(raw, window, dtype, one_document=None, pad=0):
    """(tokens int32 [window], segments int32 [window]) of a record; ValueError if it cannot be one.

    pad: as it was encoded. one_document: an array of ones [window] to hand out, rather than make, where nothing but one
    document is inside.
    """
    size = window * np.dtype(dtype).itemsize
    if len(raw) < size or (len(raw) - size) % 4:
        raise ValueError(f"a record of {len(raw)} bytes is not a window of {window} tokens")
    tokens = np.frombuffer(raw, dtype, window).astype(np.int32)
    if len(raw) == size:
        return tokens, np.ones(window, np.int32) if one_document is None else one_document
    marks = np.frombuffer(raw, "<u4", offset=size)
    segments = np.zeros(window, np.int32)
    segments[marks] = 1
    segments = segments.cumsum(dtype=np.int32) + 1
    twice = len(marks) > 1 and marks[-1] == marks[-2]
    if twice if pad is None else tokens[-1] == pad:  # then the last mark is where padding begins
        segments[marks[-1] :] = 0
    return tokens, segments


def check_shards(directory, meta):
    """Raises UserError where a file that meta.json names is missing or of another size."""
    for shard in (shard for shards in meta["shards"].values() for shard in shards):
        path = directory / shard["file"]
        size = path.stat().st_size if path.exists() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
            raise UserError(f"{path} {found}: run launch.prepare into {directory} again")


def read_meta(directory, kind="windows"):
    """meta.json of a prepared directory of windows or records.

    Raises UserError if it is not one, or of another format.
    """
    path = pathlib.Path(directory) / META
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{directory} holds no prepared corpus (no {META}): run launch.prepare") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the corpus again") from None
    found, wanted = meta.get("format") if isinstance(meta, dict) else None, FORMATS[kind]
    if found != wanted and found in FORMATS.values():
        [other] = [k for k in FORMATS if FORMATS[k] == found]
        raise UserError(f"{directory} holds {other}, and {kind} are wanted: prepare them with --kind={kind}")
    if found != wanted:
        raise UserError(f"{path} is of format {found!r}, this version reads {wanted!r}: prepare it again")
    return meta
