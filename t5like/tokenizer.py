"""Text to ids and back: bytes in the box, SentencePiece trained on the corpus.

Both share one layout, that of T5: pad 0, eos 1, unk 2, then text, then `extra_ids` sentinels at the very top, where
sentinel i has the id vocab_size - 1 - i. Both lose nothing: decode(encode(text)) == text for any text.
numpy and sentencepiece only, and picklable, so that data workers can hold them.
"""

import dataclasses
import difflib
import functools
import hashlib
import io
import json
import pathlib
import re

import numpy as np

from paradigm.errors import UserError

PAD, EOS, UNK = 0, 1, 2
SENTINEL_NAMES = ("<X>", "<Y>", "<Z>")  # as the T5 paper prints the first three (figure 2)
_SENTINEL = re.compile(r"<([XYZ])>|<extra_id_(\d+)>")
_META, _MODEL = "paradigm_tokenizer.json", "sentencepiece.model"
_OLD_META = "tokenizer.json"  # the name that the transformers library gives to another file
_SPACE = "\u2581"  # what SentencePiece writes for a space; a real one in the text must not become a space
_THREADS = 16  # EM sums its counts a thread at a time, so the number of threads is part of what the model is
_LINE = 1000  # characters; SentencePiece skips lines of more than 4192 bytes, and a character has at most 4


class Tokenizer:
    """What both tokenizers have. A subclass gives `text_ids`, `extra_ids`, `fingerprint` and the three hooks below."""

    pad_id, eos_id, unk_id = PAD, EOS, UNK

    @property
    def vocab_size(self):
        """All ids: specials, text and sentinels."""
        return self.text_ids + self.extra_ids

    def sentinel(self, i):
        """Id of the i-th sentinel, counted from the top of the vocabulary."""
        if not 0 <= i < self.extra_ids:
            raise UserError(f"tokenizer: there is no sentinel {i} among {self.extra_ids}; raise extra_ids")
        return self.vocab_size - 1 - i

    def encode(self, text):
        """int32 [n] ids of a str, without eos. Sentinel names in it are plain text; see `encode_prompt`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """`encode` of each, as a list of int32 arrays."""
        return [np.asarray(ids, np.int32) for ids in self._encode_texts(list(texts))]

    def encode_prompt(self, text):
        """`encode`, with <X>, <Y>, <Z> and <extra_id_i> read as sentinels 0, 1, 2 and i."""
        parts, end = [], 0
        for match in _SENTINEL.finditer(text):
            i = "XYZ".index(match[1]) if match[1] else int(match[2])
            parts += [self.encode(text[end : match.start()]), np.array([self.sentinel(i)], np.int32)]
            end = match.end()
        return np.concatenate([*parts, self.encode(text[end:])])

    def decode(self, ids):
        """The text of ids [n]: pad and eos vanish, unk is U+FFFD, sentinels read <X> <Y> <Z> <extra_id_3> and so on."""
        ids = np.asarray(ids, np.int64).ravel()
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(f"tokenizer: ids {ids.min()} to {ids.max()} leave the vocabulary of {self.vocab_size}")
        ids = ids[(ids != PAD) & (ids != EOS)]
        marks = np.flatnonzero((ids >= self.text_ids) | (ids == UNK))
        text, end = [], 0
        for mark in marks.tolist():
            i = self.vocab_size - 1 - int(ids[mark])
            name = SENTINEL_NAMES[i] if i < len(SENTINEL_NAMES) else f"<extra_id_{i}>"
            text += [self._decode_text(ids[end:mark].tolist()), "\ufffd" if ids[mark] == UNK else name]
            end = mark + 1
        return "".join([*text, self._decode_text(ids[end:].tolist())])

    @functools.cached_property
    def byte_lengths(self):
        """float32 [vocab_size]: UTF-8 bytes of text that each id stands for; 0 for specials and sentinels."""
        lengths = np.zeros(self.vocab_size, np.float32)
        lengths[: self.text_ids] = self._text_byte_lengths()
        return lengths

    def save(self, directory):
        """Writes the tokenizer into a directory, which is made; `load_tokenizer` reads it."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        meta = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "extra_ids": self.extra_ids,
            "fingerprint": self.fingerprint,
        }
        (directory / _META).write_text(json.dumps(meta, indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids, byte b at b + 3 (ByT5, Xue et al. 2022, section 3.1). A vocabulary of 259 + extra_ids."""

    extra_ids: int = 100
    kind = "bytes"
    text_ids = 3 + 256

    @property
    def fingerprint(self):
        return f"bytes:{self.extra_ids}"

    def _encode_texts(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]

    def _decode_text(self, ids):
        return bytes(i - 3 for i in ids).decode(errors="replace")

    def _text_byte_lengths(self):
        return np.r_[np.zeros(3), np.ones(256)]


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model and its sentinels.

    model: bytes of the serialised model, whose pad, eos and unk must be 0, 1 and 2 (T5's own are). extra_ids: sentinels
    added above it. The processor is built on first use, so that the object pickles as its bytes.
    """

    model: bytes = dataclasses.field(repr=False)
    extra_ids: int = 100
    kind = "sentencepiece"

    def __post_init__(self):
        found = tuple(getattr(self._processor, name)() for name in ("pad_id", "eos_id", "unk_id"))
        if found != (PAD, EOS, UNK):
            raise UserError(f"tokenizer: a SentencePiece model must have pad 0, eos 1, unk 2; this one has {found}")

    def __getstate__(self):
        return {"model": self.model, "extra_ids": self.extra_ids}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @functools.cached_property
    def _processor(self):
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise UserError(
                f"tokenizer: these {len(self.model)} bytes are not a SentencePiece model ({error})"
            ) from None

    @functools.cached_property
    def text_ids(self):
        """Ids of the SentencePiece model, specials included."""
        return self._processor.get_piece_size()

    @functools.cached_property
    def fingerprint(self):
        return f"sentencepiece:{self.extra_ids}:{hashlib.sha256(self.model).hexdigest()}"

    @functools.cached_property
    def _space_bytes(self):
        """Ids of U+2581 itself, as bytes: a piece would be decoded as a space."""
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]

    def _encode_texts(self, texts):
        if not any(_SPACE in text for text in texts):
            return self._processor.encode(texts)
        ids = []
        for text in texts:
            parts = self._processor.encode(text.split(_SPACE))
            ids.append(parts[0] + [i for part in parts[1:] for i in self._space_bytes + part])
        return ids

    def _decode_text(self, ids):
        return self._processor.decode(ids)

    def _text_byte_lengths(self):
        sp = self._processor
        pieces = ((i, sp.id_to_piece(i)) for i in range(self.text_ids))
        silent = lambda i: sp.is_control(i) or sp.is_unknown(i)
        return [0 if silent(i) else 1 if sp.is_byte(i) else len(p.replace(_SPACE, " ").encode()) for i, p in pieces]

    def save(self, directory):
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _MODEL).write_bytes(self.model)
        super().save(directory)


def train_sentencepiece(texts, vocab_size, extra_ids=100, max_bytes=10_000_000):
    """Trains a unigram SentencePiece model (Kudo 2018) that loses nothing of the text.

    The text is left as it is (identity normalisation, no dummy prefix, spaces kept, runs of them may be one piece), as
    code needs. Newline and tab are pieces of their own, digits stand alone so that a small vocabulary is not spent on
    the corpus's numbers, and what the pieces cannot spell falls back to bytes. The same texts in the same order give
    the same model, byte for byte, on any machine.

    Args:
        texts: iterable of str; read in order until `max_bytes` are taken, so give a fair sample first.
        vocab_size: all ids of the tokenizer, sentinels included.
        extra_ids: number of sentinels.
        max_bytes: about how much text to learn from (characters count as bytes).

    Returns:
        SentencePieceTokenizer.

    Raises:
        UserError: if the vocabulary is too small for sentinels, bytes and characters, or too large for the text.
    """
    import sentencepiece

    smallest = extra_ids + 3 + 2 + 256
    if vocab_size <= smallest:
        raise UserError(
            f"tokenizer: a SentencePiece vocabulary of {vocab_size} is too small: {extra_ids} sentinels, 3 specials, "
            f"newline, tab and 256 bytes take {smallest} ids; use {smallest + 256} or more, or the tokenizer 'bytes'"
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
            vocab_size=vocab_size - extra_ids,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
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
        raise UserError(_training_problem(str(error), vocab_size, extra_ids)) from None
    return SentencePieceTokenizer(model.getvalue(), extra_ids)


def _training_problem(message, vocab_size, extra_ids):
    """SentencePiece's complaint in our numbers."""
    if "sentences_.empty" in message:
        return "tokenizer: there is no text to learn a SentencePiece vocabulary from; name a source that holds some"
    if most := re.search(r"value <= (\d+)", message):
        most = int(most[1]) + extra_ids
        return f"tokenizer: this text supports a vocabulary of at most {most}, not {vocab_size}; use that, or more text"
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        least = int(least[1]) + extra_ids
        return f"tokenizer: the characters of this text need a vocabulary of at least {least}, not {vocab_size}"
    return f"tokenizer: SentencePiece could not learn {vocab_size} ids from this text: {' '.join(message.split())}"


def load_tokenizer(path):
    """The tokenizer that `save` wrote into a directory, checked against its fingerprint."""
    directory = pathlib.Path(path)
    name = _META if (directory / _META).exists() or not (directory / _OLD_META).exists() else _OLD_META
    try:
        meta = json.loads((directory / name).read_text())
        if meta["kind"] == ByteTokenizer.kind:
            tokenizer = ByteTokenizer(meta["extra_ids"])
        else:
            tokenizer = SentencePieceTokenizer((directory / _MODEL).read_bytes(), meta["extra_ids"])
    except FileNotFoundError as error:
        raise UserError(f"tokenizer: {error.filename} is missing; {directory} should hold a saved tokenizer") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"tokenizer: {directory / name} is damaged ({error}); prepare the data again") from None
    if tokenizer.fingerprint != meta["fingerprint"]:
        raise UserError(
            f"tokenizer: {directory} does not hold the model that was saved there (fingerprint "
            f"{tokenizer.fingerprint}, expected {meta['fingerprint']}); prepare the data again"
        )
    return tokenizer


def announced_size(spec, extra_ids=100):
    """Ids of the tokenizer that `get_tokenizer` would give for this name; None where there is none to look at."""
    name, _, size = str(spec).partition(":")
    if name == "sentencepiece" and size.isdigit():
        return int(size)
    if spec != "bytes" and not pathlib.Path(spec).exists():
        return None
    return get_tokenizer(spec, extra_ids=extra_ids).vocab_size


def get_tokenizer(spec, texts=None, extra_ids=100):
    """A tokenizer by name.

    Args:
        spec: "bytes"; "sentencepiece:8192", trained on `texts` to that many ids, sentinels included; a directory that
            `save` wrote; or a SentencePiece .model file, such as T5's own.
        texts: iterable of str, or a function returning one, for "sentencepiece:N".
        extra_ids: number of sentinels (a saved directory knows its own).

    Raises:
        UserError: for anything else, with the nearest of these.
    """
    name, _, size = str(spec).partition(":")
    if spec == "bytes":
        return ByteTokenizer(extra_ids)
    if name == "sentencepiece" and size.isdigit():
        if texts is None:
            raise UserError(f"tokenizer: {spec} is learnt from text, and none was given; name a saved one instead")
        return train_sentencepiece(texts() if callable(texts) else texts, int(size), extra_ids)
    path = pathlib.Path(spec)
    if path.is_dir():
        return load_tokenizer(path)
    if path.is_file():
        return SentencePieceTokenizer(path.read_bytes(), extra_ids)
    near = difflib.get_close_matches(name, ["bytes", "sentencepiece"], 1)
    hint = {"bytes": "'bytes'", "sentencepiece": "'sentencepiece:8192'"}
    did = f"; did you mean {hint[near[0]]}?" if near else ""
    raise UserError(f"tokenizer: {spec!r} is neither 'bytes' nor 'sentencepiece:SIZE' nor a file or directory{did}")
