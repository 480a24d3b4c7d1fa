"""The tokenizers that released weights of CLIP and SigLIP came with: ids as the towers learnt them.

Both are picklable and numpy-only, since data workers hold them, and have what `PreprocessPair` asks of a tokenizer:
encode(text) -> int32 ids without specials, and bos_id, eos_id, pad_id, vocab_size.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import pathlib
import re
import string
import unicodedata

import numpy as np

from paradigm.errors import UserError

_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_END = "</w>"  # what ends a word among the pieces


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's byte-level pair encoding (Radford et al. 2021, section 2.4; openai/CLIP simple_tokenizer.py), lower case.

    merges: the text of merges.txt, a pair of pieces a line, most frequent first. The ids follow from it: 256 bytes, the
    same as ends of words, what each pair makes, then <|startoftext|> and <|endoftext|>, which also pads.
    """

    merges: bytes = dataclasses.field(repr=False)

    def __getstate__(self):
        return {"merges": self.merges}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @functools.cached_property
    def _pairs(self):
        lines = self.merges.decode("utf-8").strip("\n").split("\n")
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        for pair in pairs:
            if len(pair) != 2:
                raise UserError(f"tokenizer: {' '.join(pair)!r} is no merge of two pieces: is this CLIP's merges.txt?")
        return pairs

    @functools.cached_property
    def _ranks(self):
        return {pair: i for i, pair in enumerate(self._pairs)}

    @functools.cached_property
    def pieces(self):
        """tuple of str, by id."""
        letters = tuple(_byte_letters().values())
        words = (*letters, *(x + _END for x in letters), *("".join(pair) for pair in self._pairs))
        return (*words, "<|startoftext|>", "<|endoftext|>")

    @functools.cached_property
    def _ids(self):
        return {piece: i for i, piece in enumerate(self.pieces)}

    @property
    def vocab_size(self):
        return len(self.pieces)

    @property
    def bos_id(self):
        return self.vocab_size - 2

    @property
    def eos_id(self):
        return self.vocab_size - 1

    @property
    def pad_id(self):
        return self.vocab_size - 1

    @functools.cached_property
    def fingerprint(self):
        return f"clip:{hashlib.sha256(self.merges).hexdigest()}"

    @functools.cached_property
    def _known(self):
        return {}  # word -> ids

    def encode(self, text):
        """int32 [n] ids of a str, without start and end."""
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
        ids = []
        for word in _words(text):
            if word not in self._known:
                self._known[word] = self._word(word)
            ids += self._known[word]
        return np.array(ids, np.int32)

    def _word(self, word):
        """Ids of one word: the most frequent pair is merged, wherever it stands, until none is left."""
        letters = _byte_letters()
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += _END
        while len(parts) > 1:
            pair = min(zip(parts, parts[1:]), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if pair not in self._ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == pair
                merged.append("".join(pair) if both else parts[i])
                i += 1 + both
            parts = merged
        return [self._ids[part] for part in parts]

    def decode(self, ids):
        """The text of ids [n], in lower case, words apart; start and end vanish."""
        bytes_of = {letter: byte for byte, letter in _byte_letters().items()}
        words = "".join(self.pieces[i] for i in ids if i < self.bos_id).replace(_END, " ").strip()
        return bytes(bytes_of.get(c, 32) for c in words).decode(errors="replace")

    def save(self, directory):
        """Writes merges.txt and vocab.json, as the transformers library reads them, into a directory, which is made."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(pair) for pair in self._pairs)
        (directory / "merges.txt").write_text("\n".join(("#version: 0.2", *lines, "")), "utf-8")  # it skips a line
        (directory / "vocab.json").write_text(json.dumps(self._ids))


@functools.cache
def _byte_letters():
    """byte -> a printing character for it, as GPT-2 chose them: itself where it prints, else one from 256 on."""
    prints = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _words(text):
    """Contractions, runs of letters, single numbers, and runs of anything else but space."""
    kind = lambda c: " " if c.isspace() else unicodedata.category(c)[0]
    of = lambda c: k if (k := kind(c)) in "LN " else "?"
    i = 0
    while i < len(text):
        short = next((c for c in _CONTRACTIONS if text.startswith(c, i)), None)
        first, end = of(text[i]), i + 1
        if short:
            end = i + len(short)
        elif first != "N":
            while end < len(text) and of(text[end]) == first:
                end += 1
        if first != " ":
            yield text[i:end]
        i = end


@dataclasses.dataclass(frozen=True)
class SigLipTokenizer:
    """SigLIP's: lower case, no punctuation, the pieces of a SentencePiece model, padded with its end id (big_vision).

    model: bytes of the serialised model (spiece.model), whose end id is 1.
    """

    model: bytes = dataclasses.field(repr=False)
    bos_id = None
    eos_id = 1
    pad_id = 1

    def __getstate__(self):
        return {"model": self.model}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @functools.cached_property
    def _processor(self):
        import sentencepiece

        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise UserError(
                f"tokenizer: these {len(self.model)} bytes are not a SentencePiece model ({error})"
            ) from None
        if processor.eos_id() != self.eos_id:
            raise UserError(f"tokenizer: SigLIP's SentencePiece models end with 1; this one with {processor.eos_id()}")
        return processor

    @functools.cached_property
    def vocab_size(self):
        return self._processor.get_piece_size()

    @functools.cached_property
    def fingerprint(self):
        return f"siglip:{hashlib.sha256(self.model).hexdigest()}"

    def encode(self, text):
        """int32 [n] ids of a str, without the end."""
        text = text.lower().translate(str.maketrans("", "", string.punctuation))
        return np.array(self._processor.encode(" ".join(text.split())), np.int32)

    def decode(self, ids):
        """The text of ids [n]; ends vanish."""
        return self._processor.decode([int(i) for i in ids if i != self.eos_id])

    def save(self, directory):
        """Writes spiece.model into a directory, which is made."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "spiece.model").write_bytes(self.model)


def clip_tokenizer(path):
    """CLIP's tokenizer from a directory with merges.txt or tokenizer.json, or from such a file, or OpenAI's .txt.gz.

    Raises:
        UserError: there is none.
    """
    path = pathlib.Path(path)
    for name in ("merges.txt", "tokenizer.json"):
        if (path / name).is_file():
            path = path / name
            break
    try:
        if path.name.endswith(".gz"):
            # OpenAI's file holds more merges than CLIP's 49,408 ids have room for.
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
        elif path.suffix == ".json":
            pairs = json.loads(path.read_text("utf-8"))["model"]["merges"]
            lines = [p if isinstance(p, str) else " ".join(p) for p in pairs]
        else:
            lines = path.read_text("utf-8").split("\n")
        # One form, so that the same merges are the same tokenizer whatever file they came in.
        return ClipTokenizer("\n".join(x for x in lines if x and not x.startswith("#version")).encode())
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"tokenizer: {path} holds no merges of CLIP ({error})") from None


def siglip_tokenizer(path):
    """SigLIP's tokenizer from a directory with spiece.model or tokenizer.model, or from such a file.

    Raises:
        UserError: there is none.
    """
    path = pathlib.Path(path)
    for name in ("spiece.model", "tokenizer.model"):
        if (path / name).is_file():
            path = path / name
            break
    try:
        return SigLipTokenizer(path.read_bytes())
    except OSError as error:
        raise UserError(f"tokenizer: {path} holds no SentencePiece model ({error.strerror})") from None


def beside(path, model_type):
    """The tokenizer in a directory of weights, or None. model_type: clip or siglip."""
    names, load = {
        "clip": (("merges.txt", "tokenizer.json"), clip_tokenizer),
        "siglip": (("spiece.model", "tokenizer.model"), siglip_tokenizer),
    }[model_type]
    there = [p for p in (pathlib.Path(path) / name for name in names) if p.is_file()]
    # A tokenizer.json may be of any tokenizer, as one of ours that was exported with a run.
    if [p.name for p in there] == ["tokenizer.json"] and b"<|startoftext|>" not in there[0].read_bytes():
        return None
    return load(path) if there else None
