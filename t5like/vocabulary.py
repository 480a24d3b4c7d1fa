"""Vocabulary: what is known of a tokenizer's ids, as a value that data hand to objectives, evaluators and decoding.

Nobody else knows an id by number. numpy alone, since data workers hold it; `is_text` works on arrays of jax as well.
"""

import dataclasses
import functools

from paradigm.errors import UserError

ROWS = 128  # a table of so many rows, or a multiple, divides over devices: T5's 32,100 ids have 32,128
MODES = ("nlu", "nlg", "s2s")  # UL2's, which its released checkpoints write [NLU], [NLG] and [S2S]
NAMES = ("pad", "bos", "eos", "unk", "mask", "cls", "sep", *MODES)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer.

    size: all ids, 0 .. size - 1. pad, bos, eos, unk, mask, cls, sep: the special ones, None where there is none; nlu,
    nlg, s2s: UL2's modes.
    sentinels: those that stand for masked spans, first one first. silent: other ids that spell no text, as control
    pieces do. seps: how many sep stand between two texts, 2 in RoBERTa's kin. fingerprint: of the tokenizer; "" while
    it has yet to be learnt from the data.
    """

    size: int
    pad: int | None = None
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None
    nlu: int | None = None
    nlg: int | None = None
    s2s: int | None = None
    sentinels: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    seps: int = 1
    fingerprint: str = ""

    def __post_init__(self):
        for name in ("sentinels", "silent"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a checkpoint's JSON gives lists
        for name in NAMES:
            if (i := getattr(self, name)) is not None and not 0 <= i < self.size:
                raise UserError(f"vocabulary: {name}={i} is none of its {self.size} ids")

    @property
    def end(self):
        """The id that ends a text: eos, or else sep. Raises UserError where there is neither."""
        end = self.sep if self.eos is None else self.eos
        if end is None:
            raise UserError("the tokenizer has no id that ends a text: choose one with eos or sep, or give it specials")
        return end

    @property
    def start(self):
        """The id before the first token of a text: bos; else pad, as in T5; else what ends the text before."""
        first = self.pad if self.bos is None else self.bos
        return self.end if first is None else first

    @property
    def filler(self):
        """What stands where there is no token: pad, else id 0. Weights and segments say where that is, not this id."""
        return self.pad or 0

    @functools.cached_property
    def text_ranges(self):
        """((first id, id after the last), ...) of the ids that spell text."""
        other = {i for n in NAMES if (i := getattr(self, n)) is not None} | {*self.sentinels, *self.silent}
        edges = [-1, *sorted(other), self.size]
        return tuple((a + 1, b) for a, b in zip(edges, edges[1:]) if b > a + 1)

    def is_text(self, ids):
        """bool, as ids: which of them spell text; special ids and sentinels do not."""
        found = ids < 0
        for first, end in self.text_ranges:
            found = found | ((ids >= first) & (ids < end))
        return found

    @property
    def text_ids(self):
        """How many ids spell text."""
        return sum(end - first for first, end in self.text_ranges)


def need(vocabulary, objective, *names):
    """Raises UserError unless the vocabulary has these special ids; says how to add them."""
    if missing := [name for name in names if getattr(vocabulary, name) is None]:
        one = f"('{missing[0]}',)" if len(missing) == 1 else str(tuple(missing))
        raise UserError(
            f"{objective} needs {', '.join(missing)}, and this tokenizer has no such id: give it one with "
            f"TextData.specials = {one}, or launch.prepare --specials={','.join(missing)}"
        )


def fit_rows(model, vocabulary, what="model", multiple=1):
    """A model whose tables have a row for each id: as many as it says itself, or the vocabulary's, rounded up.

    model: a module with `vocab_size`, None where the vocabulary decides. multiple: to round up to.

    Raises:
        UserError: it says fewer than there are ids.
    """
    if model.vocab_size is None:
        return model.clone(vocab_size=-(-vocabulary.size // multiple) * multiple)
    if model.vocab_size < vocabulary.size:
        raise UserError(
            f"the tokenizer has {vocabulary.size} ids but the {what} {model.vocab_size}: set its vocab_size to "
            f"{vocabulary.size} or more, or leave it out"
        )
    return model


def same(found, wanted, found_in, wanted_in):
    """Raises UserError unless two vocabularies are of one tokenizer, as far as both are known; None: of no text.

    found_in, wanted_in: where each is from, for the message.
    """
    if found is None or wanted is None:
        return
    one = lambda v: dataclasses.replace(v, fingerprint="")
    if found.fingerprint and wanted.fingerprint:
        alike = found.fingerprint == wanted.fingerprint
    else:
        alike = one(found) == one(wanted)
    if not alike:
        name = lambda v: f"{v.size:,} ids" + (f", {v.fingerprint[:40]}" if v.fingerprint else "")
        raise UserError(
            f"another vocabulary: {found_in} has {name(found)}, and {wanted_in} has {name(wanted)}. Ids of one mean "
            "nothing to the other: use data of the same tokenizer (launch.prepare --tokenizer=RUN/tokenizer)"
        )
