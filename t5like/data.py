"""Text as a run names it: where it comes from, its tokenizer, and what is held out."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from paradigm.dataset import Mixture
from paradigm.errors import UserError
from paradigm.records import Prepared
from paradigm.storage import expand
from t5like.prepare import prepare, same_corpus
from t5like.prepare_windows import WINDOWS
from t5like.sources import EXTENSIONS
from t5like.tokenizers import is_learnt, vocabulary_of
from t5like.tokenizers.base import checked_specials
from t5like.windows import META, PreparedText


@dataclasses.dataclass(frozen=True)
class TextData:
    """Which text a run reads, and how it becomes windows of tokens.

    source: stdlib, a file or folder, tfds:NAME (see t5like/sources.py), or a directory that launch.prepare wrote, which
    is used as it is. tokenizer: bytes; sentencepiece:SIZE, bpe:SIZE or wordpiece:SIZE (learnt from this text); or the
    path of one (see t5like/tokenizers). extra_ids: sentinels; None: as many as its directory says, else 100, and none
    for a tokenizer's file that is not like T5's. specials: names among mask, cls, sep, bos and eos, ids of which the
    tokenizer is given. window: tokens a window; None takes what the objective reads. valid: share of the bytes that is
    held out: documents chosen by a hash of their names, and of long ones the end; a tfds validation split takes its
    place. valid_glob: names of the files to hold out instead, such as 'valid/*'. exclude: names of files to leave out,
    such as 'test/*' (both may be several, comma-separated; each must match something). field: where the text stands in
    records (jsonl, csv, Parquet, tfds), with dots for what is nested. extensions: what is text inside a folder or
    archive. invalid_utf8: 'replace' (and count) or 'refuse'. shift_windows: cut the training text at other tokens in
    every epoch, as (seed, epoch) says (ShiftedWindows in t5like/windows.py): for a text so small that it is read many
    times. Of a directory that is prepared too, since nothing that is stored depends on it.
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
    shift_windows: bool = False

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
    def kind(self):
        """What it is prepared as (see prepare)."""
        return WINDOWS

    @property
    def settings(self):
        """What meta.json keeps of it: all that decides what is stored. What came later only where it is used, so that
        older directories still match."""
        kept = json.loads(json.dumps(dataclasses.asdict(self)))
        del kept["shift_windows"]
        return {k: v for k, v in kept.items() if k not in ("extra_ids", "specials") or v not in (None, [])}

    def vocabulary(self):
        """The text's Vocabulary, known before it is prepared; None where its tokenizer is not on this machine."""
        source = expand(self.source)
        if (source / META).exists():
            return PreparedText(source).tokenizer.vocabulary
        return vocabulary_of(self.tokenizer, self.extra_ids, self.specials)

    def build(self, cache_dir, window=None, progress=True, workers=None):
        """The PreparedText of this recipe: the source itself if it is prepared, else made in `cache_dir`, once.

        window: tokens that the objective reads; longer held-out windows are then cut, so that all of them is evaluated.
            workers: processes (None: one a core).
        Raises UserError if the text cannot be used, or cache_dir holds other data.
        """
        source = expand(self.source)
        if (source / META).exists():
            prepared = PreparedText(source, window, self.shift_windows)
            self._agree(prepared)
        else:
            recipe = dataclasses.replace(self, window=self.window or window)
            if (pathlib.Path(cache_dir) / META).exists():  # a run keeps the text that it began with
                same_corpus(cache_dir, recipe)
            else:
                prepare(recipe, cache_dir, workers=workers, progress=progress)
            prepared = PreparedText(cache_dir, window, self.shift_windows)
        if window and prepared.window < window:
            raise UserError(
                f"{prepared.directory} holds windows of {prepared.window} tokens and the objective reads "
                f"{window}: prepare it again with --window={window}, or shorten the objective's length"
            )
        return prepared

    def _agree(self, prepared):
        """UserError if the model would be built for other tokens, or longer windows, than a prepared directory holds.

        A tokenizer that would be learnt, and windows that are shorter, give way to the directory's, which is told.
        """
        there = prepared.meta["settings"]
        same_size = f"{self.tokenizer.partition(':')[0]}:{prepared.meta['vocab_size']}"
        for name, asked, alike in (("tokenizer", self.tokenizer, same_size), ("window", self.window, None)):
            if asked in (getattr(TextData, name), there[name], alike):
                continue
            if name == "tokenizer" and is_learnt(asked):  # chosen with the directory
                told = f"brings its tokenizer, {there[name]!r}: {asked!r} is not learnt"
                print(f"{prepared.directory} {told}", file=sys.stderr)
            elif name == "window" and asked < there[name]:
                print(
                    f"{prepared.directory} brings windows of {there[name]} tokens, more than {asked}", file=sys.stderr
                )
            else:
                raise UserError(
                    f"{prepared.directory} was prepared with {name}={there[name]!r}, not {asked!r}: set "
                    f"TextData.{name} to that, or prepare it again"
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
        return MixedText(parts=tuple(built), weights=self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedText(Prepared):
    """Prepared texts of one tokenizer, read together; what PreparedText is for one of them."""

    parts: tuple[PreparedText, ...]
    weights: tuple[Any, ...]

    @property
    def name(self):
        return " and ".join(one.name for one in self.parts)

    @property
    def tokenizer(self):
        return self.parts[0].tokenizer

    def source(self, split="train"):
        """A Mixture of the parts' windows; of 'valid', those of the parts that hold any out."""
        if split == "train":
            return Mixture([p.source(split) for p in self.parts], self.weights)
        kept = [p for p in self.parts if p.meta["shards"][split]] or self.parts[:1]
        return Mixture([p.source(split) for p in kept], [1] * len(kept))
