"""Text as windows of tokens: the recipe that a run names, and the prepared directory that training reads.

A prepared directory holds meta.json (written last: its presence means that all the rest is whole), tokenizer/, and
ArrayRecord shards `train-00000-of-00007.array_record`, `valid-...`. One record is one window: W tokens in the smallest
unsigned type that holds the vocabulary, then the uint32 places at which another document begins, then, for a window
that its text does not fill, the number of tokens it has.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from paradigm.dataset import Mixture
from paradigm.errors import UserError
from t5like.sources import EXTENSIONS
from t5like.tokenizers import load_tokenizer, vocabulary_of
from t5like.tokenizers.base import checked_specials

FORMAT = "paradigm-text-1"
META = "meta.json"


@dataclasses.dataclass(frozen=True)
class TextData:
    """Which text a run reads, and how it becomes windows of tokens.

    source: stdlib, a file or folder, tfds:NAME (see t5like/sources.py), or a directory that launch.prepare wrote, which
    is used as it is. tokenizer: bytes; sentencepiece:SIZE, bpe:SIZE or wordpiece:SIZE (learnt from this text); or the
    path of one (see t5like/tokenizers). extra_ids: sentinels; None: 100, and none for a tokenizer's file that is not
    like T5's. specials: names among mask, cls, sep, bos and eos, ids of which the tokenizer is given. window: tokens a
    window; None takes what the objective reads. valid: share of the documents held out, chosen by a hash of their
    names; a tfds validation split takes its place. valid_glob: names of the documents to hold out instead, such as
    'valid/*'. exclude: names to leave out, such as 'test/*' (both may be several, comma-separated). field: where the
    text stands in jsonl and tfds records. extensions: what is text inside a folder or archive. invalid_utf8: 'replace'
    (and count) or 'refuse'.
    """

    source: str = "stdlib"
    tokenizer: str = "bytes"
    window: int | None = None
    valid: float = 0.05
    valid_glob: str = ""
    exclude: str = ""
    field: str = "text"
    extensions: tuple[str, ...] = EXTENSIONS
    invalid_utf8: str = "replace"
    extra_ids: int | None = None
    specials: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "extensions", tuple(self.extensions))  # gin gives a list
        object.__setattr__(self, "specials", checked_specials(self.specials))
        if not 0 <= self.valid < 1:
            raise UserError(f"valid={self.valid}: the held-out share of documents must lie in [0, 1)")
        if self.invalid_utf8 not in ("replace", "refuse"):
            raise UserError(f"invalid_utf8={self.invalid_utf8!r}: choose 'replace' or 'refuse'")
        if self.window is not None and self.window < 2:
            raise UserError(f"window={self.window}: a window holds at least 2 tokens")

    @property
    def settings(self):
        """What meta.json keeps of it; what came later only where it is used, so that older directories still match."""
        kept = json.loads(json.dumps(dataclasses.asdict(self)))
        return {k: v for k, v in kept.items() if k not in ("extra_ids", "specials") or v not in (None, [])}

    def vocabulary(self):
        """The text's Vocabulary, known before it is prepared; None where its tokenizer is not on this machine."""
        source = pathlib.Path(self.source).expanduser()
        if (source / META).exists():
            return PreparedText(source).tokenizer.vocabulary
        return vocabulary_of(self.tokenizer, self.extra_ids, self.specials)

    def build(self, cache_dir, window=None, progress=True, workers=None):
        """The PreparedText of this recipe: the source itself if it is prepared, else made in `cache_dir`, once.

        window: tokens that the objective reads. workers: processes (None: one a core).
        Raises UserError if the text cannot be used, or cache_dir holds other data.
        """
        from t5like.prepare import prepare, same_settings  # it needs more than a data worker does

        source = pathlib.Path(self.source).expanduser()
        if (source / META).exists():
            prepared = PreparedText(source)
            self._agree(prepared)
        else:
            recipe = dataclasses.replace(self, window=self.window or window)
            if (
                pathlib.Path(cache_dir) / META
            ).exists():  # a run keeps the text it began with, whatever became of the source
                same_settings(cache_dir, read_meta(cache_dir)["settings"], recipe.settings)
            else:
                prepare(recipe, cache_dir, workers=workers, progress=progress)
            prepared = PreparedText(cache_dir)
        if window and prepared.window < window:
            raise UserError(
                f"{prepared.directory} holds windows of {prepared.window} tokens and the objective reads "
                f"{window}: prepare it again with --window={window}, or shorten the objective's length"
            )
        return prepared

    def _agree(self, prepared):
        """UserError if the model would be built for other tokens, or other windows, than a prepared directory holds."""
        there = prepared.meta["settings"]
        same_size = f"{self.tokenizer.partition(':')[0]}:{prepared.meta['vocab_size']}"
        for name, asked, alike in (("tokenizer", self.tokenizer, same_size), ("window", self.window, None)):
            if asked not in (getattr(TextData, name), there[name], alike):
                raise UserError(
                    f"{prepared.directory} was prepared with {name}={there[name]!r}, not {asked!r}: set "
                    f"TextData.{name} to that, or prepare it again"
                )


class PreparedText:
    """A prepared directory, opened.

    window: tokens a window. tokenizer. meta: what meta.json says (counts of documents, tokens, bytes, padding).
    Raises UserError if the directory is not whole.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.meta = read_meta(self.directory)
        self.window = self.meta["settings"]["window"]
        self.fingerprint = self.meta["fingerprint"]
        for shard in self.meta["shards"]["train"] + self.meta["shards"]["valid"]:
            path = self.directory / shard["file"]
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise UserError(f"{path} {found}: run launch.prepare into {self.directory} again")

    @functools.cached_property
    def tokenizer(self):
        return load_tokenizer(self.directory / "tokenizer")

    def source(self, split="train"):
        """The windows of 'train' or 'valid', as a source for paradigm.dataset.Dataset."""
        shards = self.meta["shards"][split]
        if not shards:
            raise UserError(f"{self.directory} has no {split} windows: prepare it with --valid above 0")
        return WindowSource(
            tuple(str(self.directory / s["file"]) for s in shards),
            tuple(s["windows"] for s in shards),
            self.window,
            self.meta["dtype"],
            self.tokenizer.byte_lengths,
            self.tokenizer.vocabulary,
            f"{self.fingerprint}/{split}",
        )


@dataclasses.dataclass(frozen=True)
class TextMixture:
    """Several texts as one, in shares that may change with the step (see paradigm.dataset.Mixture).

    parts: a TextData each, all of one tokenizer: bytes, or the path of a saved one, or prepared with it. weights: a
    number or a schedule for each. Validation reads all of their held-out windows, one text after the other.
    """

    parts: tuple[TextData, ...]
    weights: tuple[Any, ...]

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))  # gin gives lists
        object.__setattr__(self, "weights", tuple(self.weights))

    def vocabulary(self):
        """As of a TextData: the first part's, since all are of one tokenizer."""
        return self.parts[0].vocabulary()

    def build(self, cache_dir, window=None, progress=True, workers=None):
        """The MixedText of these parts, each made in a directory of its own under `cache_dir` unless it is prepared.

        Raises UserError if a part cannot be used, or if they are not of one tokenizer.
        """
        built = [p.build(pathlib.Path(cache_dir) / str(i), window, progress, workers) for i, p in enumerate(self.parts)]
        for one in built[1:]:
            if one.tokenizer.fingerprint != built[0].tokenizer.fingerprint:
                raise UserError(
                    f"the texts in {one.directory} and {built[0].directory} are not of one tokenizer: prepare the "
                    f"first alone, and the others with --tokenizer={built[0].directory / 'tokenizer'}"
                )
        return MixedText(tuple(built), self.weights)


@dataclasses.dataclass(frozen=True)
class MixedText:
    """Prepared texts of one tokenizer, read together; what PreparedText is for one of them."""

    parts: tuple[PreparedText, ...]
    weights: tuple[Any, ...]

    @property
    def tokenizer(self):
        return self.parts[0].tokenizer

    def source(self, split="train"):
        """A Mixture of the parts' windows; of 'valid', those of the parts that hold any out."""
        if split == "train":
            return Mixture([p.source(split) for p in self.parts], self.weights)
        kept = [p for p in self.parts if p.meta["shards"][split]] or self.parts[:1]
        return Mixture([p.source(split) for p in kept], [1] * len(kept))


class WindowSource:
    """Random access to the windows of some shards; picklable, since files are opened when first read.

    A record is {"tokens": int32 [W], "segments": int32 [W] (1, 2 .. the window's documents, 0 padding), "byte_lengths":
    float32 [vocabulary], the same array in every record}.
    """

    def __init__(self, paths, counts, window, dtype, byte_lengths, vocabulary, fingerprint):
        self.pad = padding(vocabulary)
        self.paths, self.counts, self.window, self.dtype = paths, counts, window, np.dtype(dtype)
        self.byte_lengths, self.fingerprint = byte_lengths, fingerprint
        self._ends = np.cumsum(counts)
        self._readers = {}
        self._one_document = np.ones(window, np.int32)
        self._one_document.flags.writeable = False

    def __getstate__(self):
        return {**self.__dict__, "_readers": {}}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._one_document.flags.writeable = False

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, position):
        return self.__getitems__([position])[0]

    def __getitems__(self, positions):
        positions = np.asarray(positions)
        shards = np.searchsorted(self._ends, positions, side="right")
        places = positions - self._ends[shards] + np.asarray(self.counts)[shards]
        records = [None] * len(positions)
        for shard in np.unique(shards):
            rows = np.flatnonzero(shards == shard)
            for row, raw in zip(rows.tolist(), self._reader(int(shard)).read(places[rows].tolist())):
                records[row] = self._decode(raw)
        return records

    def name(self, position):
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return f"{self.paths[shard]} window {position - self._ends[shard] + self.counts[shard]}"

    def _reader(self, shard):
        reader = self._readers.get(shard)
        if reader is None:
            from array_record.python.array_record_module import ArrayRecordReader

            reader = ArrayRecordReader(
                self.paths[shard], "readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=1 << 12
            )
            if reader.num_records() != self.counts[shard]:
                raise UserError(
                    f"{self.paths[shard]} has {reader.num_records()} windows instead of "
                    f"{self.counts[shard]}: prepare it again"
                )
            self._readers[shard] = reader
        return reader

    def _decode(self, raw):
        tokens, segments = decode_window(raw, self.window, self.dtype, self._one_document, self.pad)
        return {"tokens": tokens, "segments": segments, "byte_lengths": self.byte_lengths}


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


def read_meta(directory):
    """meta.json of a prepared directory. Raises UserError if it is not one, or of another format."""
    path = pathlib.Path(directory) / META
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{directory} holds no prepared corpus (no {META}): run launch.prepare") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the corpus again") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{path} is of format {meta.get('format')!r}, this version reads {FORMAT!r}: prepare it again")
    return meta
