"""SentencePiece (Kudo and Richardson 2018): models learnt here, and released ones with whatever ids they have."""

import dataclasses
import functools
import hashlib
import io
import pathlib
import re

from paradigm.errors import UserError
from t5like.tokenizers.base import Tokenizer, checked_specials, sentinels_among

FILE = "sentencepiece.model"
_SPACE = "\u2581"  # what SentencePiece writes for a space; a real one in the text must not become a space
_THREADS = 16  # EM sums its counts a thread at a time, so the number of threads is part of what the model is
_LINE = 1000  # characters; SentencePiece skips lines of more than 4192 bytes, and a character has at most 4
_PIECES = {  # special pieces that models name in their own way (BERT, ALBERT; BART, Camembert; XLNet)
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
}


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and sentinels above it.

    model: bytes of the serialised model; its own pad, bos, eos and unk count, wherever they are, and so do pieces that
    are called mask, cls or sep. extra_ids: sentinels added above it. specials: names of ids added above those.

    A model that `train_sentencepiece` made loses nothing of a text. Another loses what its normalisation takes: usually
    line ends and tabs, runs of spaces, spaces at both ends, and the difference of characters that NFKC makes equal.
    """

    model: bytes = dataclasses.field(repr=False)
    extra_ids: int = 100
    specials: tuple[str, ...] = ()
    kind = "sentencepiece"

    def __post_init__(self):
        object.__setattr__(self, "specials", checked_specials(self.specials))
        _ = self._processor  # raises now rather than in a data worker

    def __getstate__(self):
        return {"model": self.model, "extra_ids": self.extra_ids, "specials": self.specials}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @functools.cached_property
    def _processor(self):
        return processor(self.model)

    @functools.cached_property
    def text_size(self):
        """Ids of the SentencePiece model, specials included."""
        return self._processor.get_piece_size()

    @functools.cached_property
    def own(self):
        sp = self._processor
        ids = {name: getattr(sp, f"{name}_id")() for name in ("pad", "bos", "eos", "unk")}
        found = {name: i for name, i in ids.items() if i >= 0}
        for name, spellings in _PIECES.items():
            at = (i for piece in spellings if not sp.is_unknown(i := sp.piece_to_id(piece)))
            if (i := next(at, None)) is not None:
                found[name] = i
        return found

    @functools.cached_property
    def silent(self):
        sp, own = self._processor, {*self.own.values(), *self.own_sentinels}
        return tuple(i for i in range(self.text_size) if (sp.is_control(i) or sp.is_unused(i)) and i not in own)

    @functools.cached_property
    def own_sentinels(self):
        return _own_sentinels(self._processor)

    @functools.cached_property
    def fingerprint(self):
        return f"sentencepiece:{self._beside}:{hashlib.sha256(self.model).hexdigest()}"

    @functools.cached_property
    def _space_bytes(self):
        """Ids of U+2581 itself, as bytes, where the model keeps spaces as they are; else None: it reads a space."""
        sp = self._processor
        ids = [sp.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        keeps = "".join(sp.encode("  a ", out_type=str)) == f"{_SPACE}{_SPACE}a{_SPACE}"
        return ids if keeps and all(map(sp.is_byte, ids)) else None

    def _encode_texts(self, texts):
        if not any(_SPACE in text for text in texts) or self._space_bytes is None:
            return self._processor.encode(texts)
        ids = []
        for text in texts:
            parts = self._processor.encode(text.split(_SPACE))
            ids.append(parts[0] + [i for part in parts[1:] for i in self._space_bytes + part])
        return ids

    def _decode_text(self, ids, first=True):
        """The pieces as text. Of a model that puts a space before a text, that one is taken off at the beginning."""
        sp = self._processor
        text = sp.decode(ids)
        if not first and ids and sp.id_to_piece(ids[0]).startswith(_SPACE) and not text.startswith(" "):
            return " " + text
        return text

    def _special_pieces(self):
        v = self.vocabulary
        return [self._processor.id_to_piece(i) for i in range(self.text_size) if not v.is_text(i)]

    def _text_byte_lengths(self):
        sp = self._processor
        pieces = ((i, sp.id_to_piece(i)) for i in range(self.text_size))
        silent = lambda i: sp.is_control(i) or sp.is_unknown(i)
        return [0 if silent(i) else 1 if sp.is_byte(i) else len(p.replace(_SPACE, " ").encode()) for i, p in pieces]

    def _text_word_starts(self):
        sp = self._processor
        return [sp.id_to_piece(i)[:1] in (_SPACE, "\n", "\t") for i in range(self.text_size)]

    def _contents(self):
        return {FILE: self.model}

    @classmethod
    def load(cls, directory, extra_ids, specials=()):
        return cls((pathlib.Path(directory) / FILE).read_bytes(), extra_ids, specials)


def processor(model):
    """A SentencePieceProcessor of a serialised model. Raises UserError if the bytes are none."""
    import sentencepiece

    if not model:  # which the library takes for one that is loaded later
        raise UserError("tokenizer: these 0 bytes are not a SentencePiece model")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"tokenizer: these {len(model)} bytes are not a SentencePiece model ({error})") from None


def is_t5_like(model):
    """Whether a serialised model has T5's pad 0, eos 1, unk 2, no bos and no sentinels: then these belong above it."""
    sp = processor(model)
    return (sp.pad_id(), sp.eos_id(), sp.unk_id(), sp.bos_id()) == (0, 1, 2, -1) and not _own_sentinels(sp)


def _own_sentinels(sp):
    return sentinels_among(lambda piece: None if sp.is_unknown(i := sp.piece_to_id(piece)) else i)


def train_sentencepiece(texts, vocab_size, extra_ids=100, max_bytes=10_000_000, specials=()):
    """Trains a unigram SentencePiece model (Kudo 2018) that loses nothing of the text: pad 0, eos 1, unk 2.

    The text is left as it is (identity normalisation, no dummy prefix, spaces kept, runs of them may be one piece), as
    code needs. Newline and tab are pieces of their own, digits stand alone so that a small vocabulary is not spent on
    the corpus's numbers, and what the pieces cannot spell falls back to bytes. The same texts in the same order give
    the same model, byte for byte, on any machine.

    Args:
        texts: iterable of str; read in order until `max_bytes` are taken, so give a fair sample first.
        vocab_size: all ids of the tokenizer, sentinels and specials included.
        extra_ids: number of sentinels. specials: names of ids that it is given.
        max_bytes: about how much text to learn from (characters count as bytes).

    Returns:
        SentencePieceTokenizer.

    Raises:
        UserError: if the vocabulary is too small for sentinels, bytes and characters, or too large for the text.
    """
    import sentencepiece

    above = extra_ids + len(specials)
    smallest = above + 3 + 2 + 256
    if vocab_size <= smallest:
        raise UserError(
            f"tokenizer: a SentencePiece vocabulary of {vocab_size} is too small: {extra_ids} sentinels, "
            f"{3 + len(specials)} specials, newline, tab and 256 bytes take {smallest} ids; use {smallest + 256} or "
            "more, or the tokenizer 'bytes'"
        )

    def lines():
        left = max_bytes
        for text in texts:
            for line in text.replace("\0", "").split("\n"):
                for start in range(0, len(line), _LINE):
                    yield line[start : start + _LINE]
            left -= len(text)
            if left <= 0:
                return

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - above,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            split_digits=True,
            shuffle_input_sentence=False,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_training_problem(str(error), vocab_size, above)) from None
    return SentencePieceTokenizer(model.getvalue(), extra_ids, specials)


def _training_problem(message, vocab_size, above):
    """SentencePiece's complaint in our numbers."""
    if "sentences_.empty" in message:
        return "tokenizer: there is no text to learn a SentencePiece vocabulary from; name a source that holds some"
    if most := re.search(r"value <= (\d+)", message):
        most = int(most[1]) + above
        fix = f"use that, as in 'sentencepiece:{most}', or more text"
        return f"tokenizer: this text supports a vocabulary of at most {most}, not {vocab_size}; {fix}"
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        least = int(least[1]) + above
        fix = f"use that or more, as in 'sentencepiece:{least}'"
        return f"tokenizer: the characters of this text need a vocabulary of at least {least}, not {vocab_size}; {fix}"
    return f"tokenizer: SentencePiece could not learn {vocab_size} ids from this text: {' '.join(message.split())}"
