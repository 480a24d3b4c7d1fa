"""The protocol of tokenizers: text to ids and back, a Vocabulary, bytes a piece, save and load.

All are picklable and light until first used, so that data workers can hold them.
"""

import functools
import itertools
import json
import pathlib
import re

import numpy as np

from paradigm.errors import UserError
from t5like.sentences import UNSPACED, sentence_ends
from t5like.vocabulary import MODES, NAMES, Vocabulary

META = "paradigm_tokenizer.json"  # `tokenizer.json` is a file of the transformers library's
SENTINEL_NAMES = ("<X>", "<Y>", "<Z>")  # as the T5 paper prints the first three (figure 2)
_SENTINEL = re.compile(r"<([XYZ])>|<extra_id_(\d+)>")
_UNSPACED = re.compile(UNSPACED)
_SILENT = ("pad", "bos", "eos", "cls", "sep")  # what `decode` leaves out


def check_texts(what, texts, wanted="a text is wanted, or a list of them"):
    """The texts as a list. Raises UserError for what is none: whom `what` asks may be given anything."""
    for text in texts if isinstance(texts, (list, tuple)) else [texts]:
        if not isinstance(text, str):
            raise UserError(f"{what}: {wanted}, not {type(text).__name__}")
    return list(texts)


def sentinels_among(find):
    """Ids of <extra_id_0>, <extra_id_1> .. as far as there are some; mT5's pieces have a space before each.

    find: piece -> its id, None where there is no such piece.
    """
    spelt = ((find(f"<extra_id_{i}>"), find(f"\u2581<extra_id_{i}>")) for i in itertools.count())
    ids = (plain if plain is not None else spaced for plain, spaced in spelt)
    return tuple(itertools.takewhile(lambda i: i is not None, ids))


class Tokenizer:
    """What all tokenizers share.

    A subclass gives `kind`, `text_size` (ids of its own model, specials included), `extra_ids` (sentinels, which lie
    above those, the first one highest), `specials` (names among mask, cls, sep, bos that are given to it, above the
    sentinels), `own` (name -> id of the special ids that its model has), `fingerprint`, and the hooks
    `_encode_texts(texts)` -> lists of ids, `_decode_text(ids, first)` -> text of ids without specials, and
    `_text_byte_lengths()`.
    """

    extra_ids, specials, silent, seps = 0, (), (), 1
    own_sentinels = ()  # ids of <extra_id_0>, <extra_id_1> ... where the model has them itself

    @property
    def vocab_size(self):
        """All ids: specials, text and sentinels."""
        return self.text_size + self.extra_ids + len(self.specials)

    @functools.cached_property
    def vocabulary(self):
        """The ids as a value, which objectives, evaluators and decoding read."""
        top = self.text_size + self.extra_ids
        given = {name: top + i for i, name in enumerate(self.specials)}
        if twice := [n for n in given if self.own.get(n) is not None]:
            raise UserError(f"tokenizer: it has a {twice[0]} id of its own ({self.own[twice[0]]}): do not give it one")
        return Vocabulary(
            size=self.vocab_size,
            **{**self.own, **given},
            sentinels=(*self.own_sentinels, *range(top - 1, self.text_size - 1, -1)),
            silent=tuple(self.silent),
            seps=self.seps,
            fingerprint=self.fingerprint,
        )

    def encode(self, text):
        """int32 [n] ids of a str, without bos or eos. What it spells is text, names of special ids too."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """`encode` of each, as a list of int32 arrays."""
        return [np.asarray(ids, np.int32) for ids in self._encode_texts(list(texts))]

    def encode_behind(self, texts):
        """`encode_batch` of texts that stand behind others: without the space that some models put before every text,
        beside one that it has (Llama's)."""
        if not self._puts_space:
            return self.encode_batch(texts)
        line, *found = self.encode_batch(["\n", *(f"\n{text}" for text in texts)])
        return [ids[len(line) :] for ids in found]

    @functools.cached_property
    def _puts_space(self):
        """Whether a space is put before a text that begins with one too."""
        return self.byte_lengths[self.encode("  ")].sum() == 3

    def sentinel(self, i):
        """Id of the i-th sentinel."""
        sentinels = self.vocabulary.sentinels
        if not 0 <= i < len(sentinels):
            raise UserError(f"tokenizer: there is no sentinel {i} among {len(sentinels)}; raise extra_ids")
        return sentinels[i]

    def encode_prompt(self, text):
        """`encode`, with <X>, <Y>, <Z> and <extra_id_i> read as sentinels 0, 1, 2 and i."""
        first, *others = _SENTINEL.split(text)  # text, then XYZ or None, number or None, text and so on
        names, behind = zip(others[::3], others[1::3]), self.encode_behind(others[2::3])
        marks = [self.sentinel("XYZ".index(letter) if letter else int(number)) for letter, number in names]
        parts = [part for mark, ids in zip(marks, behind) for part in ([mark], ids)]
        return np.concatenate([self.encode(first), *parts]).astype(np.int32)

    def specials_in(self, text):
        """The names of special ids and sentinels that a text spells, which `encode` reads as text."""
        return sorted(name for name in {*self._names[1].values(), *self._special_pieces()} if name in text)

    def _special_pieces(self):
        """How the model's own files call ids that spell no text."""
        return ()

    def decode(self, ids):
        """The text of ids [n]: pad, bos, eos, cls and sep vanish, unk is U+FFFD, mask reads <mask>, and sentinels
        <X> <Y> <Z> <extra_id_3> and so on."""
        ids = np.asarray(ids, np.int64).ravel()
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(f"tokenizer: ids {ids.min()} to {ids.max()} leave the vocabulary of {self.vocab_size}")
        vanish, marks = self._names
        text, run, first = [], [], True
        for i in ids.tolist():
            if i in vanish:
                continue
            if i in marks:
                text += [self._decode_text(run, first), marks[i]]
                run, first = [], False
            else:
                run.append(i)
        return "".join([*text, self._decode_text(run, first)])

    @functools.cached_property
    def _names(self):
        """(ids that `decode` leaves out, id -> what it writes for it)."""
        v = self.vocabulary
        vanish = {i for name in _SILENT if (i := getattr(v, name)) is not None} | {*v.silent}
        named = lambda i: SENTINEL_NAMES[i] if i < len(SENTINEL_NAMES) else f"<extra_id_{i}>"
        marks = {s: named(i) for i, s in enumerate(v.sentinels)}
        special = ((v.unk, "\ufffd"), (v.mask, "<mask>"), *((getattr(v, name), f"[{name.upper()}]") for name in MODES))
        marks |= {i: name for i, name in special if i is not None}
        return vanish, {i: name for i, name in marks.items() if i not in vanish}

    @functools.cached_property
    def byte_lengths(self):
        """float32 [vocab_size]: UTF-8 bytes of text that each id stands for; 0 for specials and sentinels."""
        lengths = np.zeros(self.vocab_size, np.float32)
        lengths[: self.text_size] = self._text_byte_lengths()
        return lengths * self.vocabulary.is_text(np.arange(self.vocab_size))

    @functools.cached_property
    def sentence_ends(self):
        """bool [vocab_size]: the ids whose text ends a sentence (t5like/sentences.py)."""
        return np.pad(sentence_ends(self._spelt), (0, self.vocab_size - self.text_size))

    @functools.cached_property
    def _spelt(self):
        """The text of each id below text_size by itself; "" of what spells none."""
        text = self.vocabulary.is_text(np.arange(self.text_size)).tolist()
        return [self._decode_text([i], False) if is_text else "" for i, is_text in enumerate(text)]

    @functools.cached_property
    def word_starts(self):
        """bool [vocab_size]: ids that begin a word, a space before it included; the first of a text always does. Where
        a script has no spaces between words, each id begins one."""
        starts = np.ones(self.vocab_size, bool)
        starts[: self.text_size] = self._text_word_starts()
        starts[: self.text_size] |= [_UNSPACED.match(text) is not None for text in self._spelt]
        return starts

    def _text_word_starts(self):
        return np.ones(self.text_size, bool)

    def save(self, directory):
        """Writes the tokenizer into a directory, which is made; `load_tokenizer` reads it."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._contents().items():
            (directory / name).write_bytes(content)
        meta = {"kind": self.kind, "vocab_size": self.vocab_size, "fingerprint": self.fingerprint, **self._settings()}
        (directory / META).write_text(json.dumps(meta, indent=1) + "\n")

    def _contents(self):
        """name -> bytes of the files that belong to it."""
        return {}

    def _settings(self):
        """What `load` of the same kind takes, as JSON has it."""
        return {"extra_ids": self.extra_ids, "specials": list(self.specials)}

    @property
    def _beside(self):
        """What a fingerprint says of ids above the model's own."""
        return f"{self.extra_ids}" + "".join(f"+{name}" for name in self.specials)

    # Short names, for those who need but one id.
    pad_id = property(lambda self: self.vocabulary.pad)
    bos_id = property(lambda self: self.vocabulary.bos)
    eos_id = property(lambda self: self.vocabulary.eos)
    unk_id = property(lambda self: self.vocabulary.unk)


def checked_specials(names):
    """A tuple of names that may be given to a tokenizer. Raises UserError for another."""
    names, known = tuple(names), [n for n in NAMES if n not in ("pad", "unk")]
    if wrong := [n for n in names if n not in known]:
        raise UserError(f"tokenizer: {wrong[0]!r} is no special id that can be given; choose among {', '.join(known)}")
    if len(set(names)) < len(names):
        raise UserError(f"tokenizer: specials {', '.join(names)} name one twice")
    return names
