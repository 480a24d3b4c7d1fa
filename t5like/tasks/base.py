"""What every text task shares: records for data, what a model reads of one or two texts, and its hidden states.

A task is a plain objective: a model, named "model" as in pre-training, and a head. `reading` makes of an example

    inputs    int32 [L]     Encoder and EncoderDecoder's encoder     [cls] a [sep], or [cls] a [sep] b [sep]; RoBERTa's
                                                                     kin has two [sep] between a and b
                            Decoder                                  [start] a [end], or [start] a [end] b [end]
    segments  int32 [L]     1, and 0 for padding
    types     int32 [L]     1 for b and what ends it, else 0 (Devlin et al. 2019, figure 2)
    cut       float32 []    1 where the texts were longer, and their ends were cut off: the longer one's first (BERT's
                            _truncate_seq_pair, google-research/bert, run_classifier.py)

where an id that the tokenizer lacks is left out, but for what ends a text: sep, or else eos.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.classes import OnClasses
from paradigm.errors import UserError
from paradigm.names import few
from t5like.models import PARTITION_RULES, Decoder, Encoder, EncoderDecoder
from t5like.objectives.base import OnText
from t5like.records import PreparedRecords
from t5like.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Reading:
    """Texts as a model reads them, see the top of this file. causal: the model is a Decoder. length: L."""

    vocabulary: Vocabulary
    length: int
    causal: bool

    def __post_init__(self):
        _ = self.vocabulary.end if self.closing is None else None  # raises now rather than in a data worker

    @property
    def closing(self):
        """The id after a text."""
        v = self.vocabulary
        return v.end if self.causal or v.sep is None else v.sep

    @property
    def opening(self):
        """The ids before the first text."""
        first = self.vocabulary.start if self.causal else self.vocabulary.cls
        return [] if first is None else [first]

    @property
    def between(self):
        """How many ids stand between two texts."""
        return 1 if self.causal or self.vocabulary.sep is None else self.vocabulary.seps

    def around(self, texts):
        """How many ids stand beside those of so many texts."""
        return len(self.opening) + self.between * (texts - 1) + 1

    def __call__(self, *texts):
        """(arrays [L] by name, [(place of the text's first token, tokens of it that are left)] of each text)."""
        texts = [np.asarray(text, np.int32) for text in texts]
        lengths = [len(text) for text in texts]
        kept = cut_longest(lengths, self.length - self.around(len(texts)))
        ids, types, places = [*self.opening], [0] * len(self.opening), []
        for n, (text, keep) in enumerate(zip(texts, kept)):
            places.append((len(ids), keep))
            ends = [self.closing] * (self.between if n < len(texts) - 1 else 1)
            ids += [*text[:keep], *ends]
            types += [n] * (keep + len(ends))
        fill = self.length - len(ids)
        arrays = {
            "inputs": np.array(ids + [self.vocabulary.filler] * fill, np.int32),
            "segments": np.array([1] * len(ids) + [0] * fill, np.int32),
            "types": np.array(types + [0] * fill, np.int32),
            "cut": np.float32(sum(kept) < sum(lengths)),
        }
        return arrays, places


def cut_longest(lengths, room):
    """How much of each text stays, so that all fit: one token after the other goes from the longest, of equals the
    last."""
    kept = list(lengths)
    while sum(kept) > room:
        longest = max(kept)
        behind = len(kept) - 1 - kept[::-1].index(longest)
        rest = max([k for n, k in enumerate(kept) if n != behind], default=0)
        kept[behind] -= max(1, min(sum(kept) - room, longest - rest))
    return kept


def reading_spec(batch_size, length):
    """ShapeDtypeStructs of what a Reading gives."""
    ints = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    return {
        **dict.fromkeys(("inputs", "segments", "types"), ints),
        "cut": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }


@dataclasses.dataclass(frozen=True)
class TextTask(OnText):
    """Base of the tasks on text. A subclass has the fields `model` and `length`, and says with what `label_kind` and
    which architectures it works.

    Raises UserError for another architecture, and when the model has learned positions for fewer tokens.
    """

    architectures = (Encoder, Decoder, EncoderDecoder)
    side = "input_lengths"  # of which texts it is told how many are cut
    cut_off = "ends are cut off"

    def __post_init__(self):
        if not isinstance(self.model, self.architectures):
            able = " or ".join(kind.__name__ for kind in self.architectures)
            raise UserError(f"{type(self).__name__} works on {able}, and the model is a {type(self.model).__name__}")
        if self.length < 8:
            raise UserError(f"{type(self).__name__}.length={self.length}: texts need 8 tokens or more")
        self.check_positions(type(self).__name__)

    @property
    def around(self):
        """How many ids stand beside those of the texts."""
        return self.reading.around(2 if self.side == "both_lengths" else 1)

    @property
    def label_kind(self):
        """What the records' labels have to be (t5like/labels.py); None: nothing is asked of them."""
        return None

    @property
    def reading(self):
        return Reading(self.known, self.length, isinstance(self.model, Decoder))

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def check_data(self, prepared):
        name = type(self).__name__
        if not isinstance(prepared, PreparedRecords):
            raise UserError(f"{name} reads records with fields: set Experiment.data = @TextRecords()")
        if self.label_kind is not None and not prepared.meta["settings"]["label"]:
            there = ", ".join(prepared.source()[0]["fields"])
            raise UserError(f"{name} needs labels: set TextRecords.label to the field that holds them, of {there}")
        if self.label_kind not in (None, prepared.label_kind):
            raise UserError(
                f"{name} is told labels of kind {self.label_kind!r} and the records' are {prepared.label_kind!r}: set "
                f"TextRecords.label_kind to {self.label_kind!r}, or the task's kind"
            )
        if isinstance(self, OnClasses) and self.label_kind != "number":
            self.check_classes(prepared, f"the field {prepared.meta['settings']['label']!r}")
        settings, told = prepared.meta["settings"], []
        for setting in ("input", "target", "turn"):
            if spelt := prepared.tokenizer.specials_in(settings.get(setting, "")):
                told.append(
                    f"TextRecords.{setting} spells {few(spelt)}, of which the tokenizer has an id: in a record it is "
                    "text like any other"
                )
        most = self.length - self.around
        counts = {split: prepared.longer(most, self.side, split) for split in ("train", "valid")}
        if any(counts.values()):
            sizes = {split: prepared.meta["counts"][split]["records"] for split in counts}
            long = " and ".join(f"{counts[s]:,} of {sizes[s]:,} {s}" for s in counts if sizes[s])
            told.append(f"{long} records are longer than the {most} tokens that are read of them: their {self.cut_off}")
        return tuple(told)

    def states(self, variables, batch, ctx):
        """float32 [B, L, D] of the model on `inputs`, from both sides but in a Decoder."""
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        read, segments = batch["inputs"], batch["segments"]
        if isinstance(self.model, Decoder):
            found = self.apply("model", variables, read, keys, segments, ctx=ctx, method="hidden")[0]
        elif isinstance(self.model, EncoderDecoder):
            found = self.apply("model", variables, read, keys, segments, ctx=ctx, method="encode")[0]
        else:
            one = jnp.zeros((len(read), 1), jnp.int32)  # places for the head of masked tokens, which is of no use here
            types = batch["types"] if self.model.token_types > 1 else None
            how = {"ctx": ctx, "method": "hidden"}
            found = self.apply("model", variables, read, keys, segments, one, types, **how)[1]["encoded"]
        return found.astype(jnp.float32)

    def model_flops(self, batch_size):
        """Forward FLOPs of the model's stack on the inputs."""
        return self.model.stack(parent=None).flops(batch_size, self.length)

    def throughput(self, batch_spec):
        return "tokens", batch_spec["inputs"].size

    def model_inputs(self):
        """An example of what the model is called with."""
        ids = jnp.ones((1, 8), jnp.int32)
        return (ids, ids) if isinstance(self.model, EncoderDecoder) else ids


def batch_of_rows(rows):
    """A batch, numpy, of what `preprocess` gave for some examples; as a Dataset's."""
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    index = np.stack([np.zeros(len(rows)), np.arange(len(rows))], 1).astype(np.uint32)
    return {**batch, "index": index, "mask": np.ones(len(rows), np.float32)}
