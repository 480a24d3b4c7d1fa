"""Records with fields as a run names them: templates make two texts of each, a field names its class.

They are prepared once, as windows of text are (data.py), and then read at random: a prepared directory holds meta.json
(written last), tokenizer/, and ArrayRecord shards of examples (prepare_records.py). numpy alone is imported here.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import numpy as np

from paradigm.errors import UserError
from paradigm.records import Prepared, Shards, Subset, share_of
from paradigm.storage import expand
from t5like import labels
from t5like.prepare import prepare, same_corpus
from t5like.prepare_records import RECORDS, decode_example
from t5like.tables import fields_in
from t5like.tokenizers import is_learnt, load_tokenizer, vocabulary_of
from t5like.tokenizers.base import checked_specials
from t5like.windows import META, check_shards, read_meta


@dataclasses.dataclass(frozen=True)
class TextRecords:
    """Which records a run reads, and how each becomes two texts and a class.

    source: a file or folder of jsonl, tsv, csv or ArrayRecord, or tfds:NAME (see t5like/tables.py); or a directory that
        launch.prepare --kind=records wrote, which is used as it is.
    input, target: templates, as in "{question} context: {context}"; dots lead into a field ('answers.text.0'), {{ and
        }} stand for braces. target: "" for none. input: "" takes fields of plain names, where there is no doubt about
        them, also for target and label where those are open (t5like/guess.py).
    label: field of what is known of a record; "" for none. In a test split, target and label may be missing: then they
        are empty, and -1. Names of classes and tags are learnt from the training records, and sorted (whole numbers by
        size); one that stands in another split alone is an error.
    label_kind: class, classes, number, tags or answer (see t5like/labels.py). The input of tags and the target of
        answers are read word by word.
    turns: field with the turns of a dialogue, texts that `roles` say in turn or objects with role and content, or from
        and value; "" for none. Each turn of the last role, but the first of all, is an example, with the fields
        `response` and `context`: the turns before it, each as the template `turn` writes its {role} and {text}.
    fraction: the share of the training records that is used, of each class as large a one, drawn by fraction_seed: a
        smaller fraction is a part of a larger one. Preparing them is not done again for it.
    split: field that says train, valid or test. Else tfds splits, and files and folders of such names, say it; and
        where nothing does, `valid` is the share of the records held out, by a hash of their input, so that the same
        input never stands on both sides; or of the field `group`, so that records which share it stay together.
    valid_glob, exclude: names of files or tfds splits to hold out, to leave out (several, comma-separated).
    columns: of tsv and csv files without a header.
    tokenizer, extra_ids, specials: as of t5like.data.TextData.

    Records that are broken (no JSON, another number of columns, not UTF-8, a field missing) are left out, counted, and
    the first of them named.
    """

    source: str
    input: str = ""
    target: str = ""
    label: str = ""
    label_kind: str = "class"
    turns: str = ""
    turn: str = "{role}: {text}\n"
    roles: tuple[str, ...] = ("user", "assistant")
    fraction: float = 1.0
    fraction_seed: int = 0
    split: str = ""
    group: str = ""
    valid: float = 0.05
    valid_glob: str = ""
    exclude: str = ""
    columns: tuple[str, ...] = ()
    tokenizer: str = "bytes"
    extra_ids: int | None = None
    specials: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(self.columns))  # gin gives a list
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "specials", checked_specials(self.specials))
        if self.input and not fields_in(self.input, "TextRecords.input"):
            raise UserError(f"TextRecords.input={self.input!r} names no field: write them in braces, as in '{{text}}'")
        if self.target and not fields_in(self.target, "TextRecords.target"):
            raise UserError(f"TextRecords.target={self.target!r} names no field: every record would have the same")
        if labels.check_kind(self.label_kind) == "answer" and self.input and not self.target:
            raise UserError("TextRecords.target is not set: answers stand in it, as in target='{context}'")
        for name in ("turn", "roles") if not self.turns else ():
            if getattr(self, name) != getattr(TextRecords, name):
                raise UserError(
                    f"TextRecords.{name} is of dialogues: set TextRecords.turns to the field of their turns"
                )
        if not 0 < self.fraction <= 1:
            raise UserError(f"TextRecords.fraction={self.fraction}: a share of the training records lies in (0, 1]")
        if not 0 <= self.valid < 1:
            raise UserError(f"valid={self.valid}: the held-out share of records must lie in [0, 1)")

    @property
    def kind(self):
        """What it is prepared as (see prepare)."""
        return RECORDS

    @property
    def settings(self):
        """What meta.json keeps of it."""
        kept = {k: v for k, v in dataclasses.asdict(self).items() if not k.startswith("fraction")}
        return json.loads(json.dumps(kept))

    def vocabulary(self):
        """The records' Vocabulary, known before they are prepared; None where its tokenizer is not on this machine."""
        source = expand(self.source)
        if (source / META).exists():
            return PreparedRecords(source).tokenizer.vocabulary
        return vocabulary_of(self.tokenizer, self.extra_ids, self.specials)

    def build(self, cache_dir, window=None, progress=True, workers=None):
        """The PreparedRecords of this recipe: the source itself if it is prepared, else made in `cache_dir`, once.

        window: changes nothing, since a record is as long as it is. workers: processes (None: one a core).
        Raises UserError if the records cannot be used, or cache_dir holds other data.
        """
        source = expand(self.source)
        if (source / META).exists():
            prepared = PreparedRecords(source, self.fraction, self.fraction_seed)
            self._agree(prepared)
            return prepared
        if (pathlib.Path(cache_dir) / META).exists():  # a run keeps what it began with, whatever became of the source
            same_corpus(cache_dir, self._filled(read_meta(pathlib.Path(cache_dir), "records")["settings"]))
        else:
            prepare(self, cache_dir, workers, progress)
        return PreparedRecords(cache_dir, self.fraction, self.fraction_seed)

    def _filled(self, there):
        """The recipe with what it leaves open as it was when these settings were kept."""
        left = [] if self.input else [n for n in ("input", "target", "label", "split", "group") if not getattr(self, n)]
        return dataclasses.replace(self, **{name: there[name] for name in left})

    def _agree(self, prepared):
        """UserError if a prepared directory was made with other templates, or other tokens, than are asked for.

        A tokenizer that would be learnt from the source has been chosen with the directory, which is told.
        """
        there = prepared.meta["settings"]
        same_size = f"{self.tokenizer.partition(':')[0]}:{prepared.meta['vocab_size']}"
        kept = {**dict.fromkeys(("input", "target", "label", "label_kind")), "tokenizer": same_size}
        asked = {name: getattr(self, name) for name in kept}
        wrong = [n for n, like in kept.items() if asked[n] not in (getattr(TextRecords, n), there[n], like)]
        if "tokenizer" in wrong and is_learnt(self.tokenizer):
            wrong.remove("tokenizer")
            told = f"brings its tokenizer, {there['tokenizer']!r}: {self.tokenizer!r} is not learnt"
            print(f"{prepared.directory} {told}", file=sys.stderr)
        if wrong:  # all of them at once
            told = " and ".join(f"{name}={there[name]!r}, not {asked[name]!r}" for name in wrong)
            raise UserError(
                f"{prepared.directory} was prepared with {told}: set {' and '.join(f'TextRecords.{n}' for n in wrong)} "
                "to that, or prepare it again"
            )


class PreparedRecords(Prepared):
    """A prepared directory of records, opened.

    classes: names of the labels, by number; () for none. label_kind. tokenizer. meta: what meta.json says. fingerprint:
    changes whenever a record does. fraction, seed: of the training records, see TextRecords. Raises UserError if the
    directory is not whole.
    """

    def __init__(self, directory, fraction=1.0, seed=0):
        self.directory, self.fraction, self.seed = pathlib.Path(directory), fraction, seed
        self.meta = read_meta(self.directory, "records")
        self.classes = tuple(self.meta["classes"])
        self.fingerprint = self.meta["fingerprint"]
        self.label_kind = self.meta["settings"]["label_kind"]
        check_shards(self.directory, self.meta)

    @property
    def name(self):
        return str(self.directory)

    @functools.cached_property
    def tokenizer(self):
        return load_tokenizer(self.directory / "tokenizer")

    def vocabulary(self):
        """The tokenizer's Vocabulary."""
        return self.tokenizer.vocabulary

    def source(self, split="train"):
        """The records of 'train', 'valid' or 'test', for paradigm.dataset.Dataset. Raises UserError without any."""
        shards = self.meta["shards"].get(split)
        if not shards:
            there = ", ".join(s for s, found in self.meta["shards"].items() if found)
            raise UserError(f"{self.directory} has no {split} records, only {there}: prepare it with some held out")
        paths, counts = zip(*((str(self.directory / s["file"]), s["records"]) for s in shards))
        known = self.meta["dtype"], self.meta["settings"], self.classes, self.tokenizer.byte_lengths
        source = RecordSource(paths, counts, *known, f"{self.fingerprint}/{split}")
        if split != "train" or self.fraction == 1:
            return source
        groups = [tuple(labels.names_in(self.label_kind, source.label(i)))[:1] for i in range(len(source))]
        number = {name: k for k, name in enumerate(sorted(set(groups)))}
        classes = [number[group] for group in groups] if self.label_kind != "tags" else None
        chosen = share_of(len(source), self.fraction, self.seed, classes)
        return Subset(source, chosen, f"{source.fingerprint}[{self.fraction}, {self.seed}]")

    def longer(self, length, side="input_lengths", split="train"):
        """How many records of a split have more tokens than `length`, of one side (prepare_records.LENGTHS)."""
        return sum(n for size, n in self.meta["counts"][split][side].items() if int(size) > length)


class RecordSource:
    """Random access to the examples of some shards; picklable, since files are opened when first read.

    A record is {"inputs": int32 [n], "targets": int32 [m], both without an end, "label": as labels.encode gives it,
    "fields": the record as it was, a dict, "settings": the recipe's, with the templates, "byte_lengths": float32
    [vocabulary], the same array in every record}, and where a text is read word by word "words": int32 [k], the places
    of their first tokens in it.
    """

    def __init__(self, paths, counts, dtype, settings, classes, byte_lengths, fingerprint):
        self.shards, self.dtype, self.classes = Shards(paths, counts), dtype, classes
        self.kind, self.fingerprint = settings["label_kind"], fingerprint
        self._same = {"settings": settings, "byte_lengths": byte_lengths}
        self._number = {name: k for k, name in enumerate(classes)}

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, position):
        inputs, targets, label, fields, words = decode_example(self.shards[position], self.dtype)
        known = {"label": labels.encode(self.kind, label, self._number), "fields": fields, **self._same}
        more = {} if words is None else {"words": np.array(words, np.int32)}
        return {"inputs": inputs, "targets": targets, **known, **more}

    def __getitems__(self, positions):
        return [self[position] for position in positions]

    def label(self, position):
        """A record's label as it was read."""
        return decode_example(self.shards[position], self.dtype)[2]

    def name(self, position):
        return self.shards.name(position)
