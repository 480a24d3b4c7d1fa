"""CLIP's tokenizer: ids as its text tower learnt them."""

import dataclasses
import functools
import gzip
import hashlib
import json
import re
import unicodedata

from paradigm.errors import UserError
from paradigm.storage import expand
from t5like.tokenizers.base import Tokenizer
from t5like.tokenizers.subwords import byte_letters

_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_END = "</w>"  # what ends a word among the pieces


@dataclasses.dataclass(frozen=True)
class ClipTokenizer(Tokenizer):
    """CLIP's byte-level pair encoding (Radford et al. 2021, section 2.4; openai/CLIP simple_tokenizer.py), lower case.

    merges: the text of merges.txt, a pair of pieces a line, most frequent first. The ids follow from it: 256 bytes, the
    same as ends of words, what each pair makes, then <|startoftext|> and <|endoftext|>, which also pads.
    """

    merges: bytes = dataclasses.field(repr=False)
    kind = "clip"

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
        letters = tuple(byte_letters().values())
        words = (*letters, *(x + _END for x in letters), *("".join(pair) for pair in self._pairs))
        return (*words, "<|startoftext|>", "<|endoftext|>")

    @functools.cached_property
    def _ids(self):
        return {piece: i for i, piece in enumerate(self.pieces)}

    @property
    def text_size(self):
        return len(self.pieces)

    @property
    def own(self):
        return {"bos": self.text_size - 2, "eos": self.text_size - 1, "pad": self.text_size - 1}

    @functools.cached_property
    def fingerprint(self):
        return f"clip:{hashlib.sha256(self.merges).hexdigest()}"

    @functools.cached_property
    def _known(self):
        return {}  # word -> ids

    def _encode_texts(self, texts):
        return list(map(self._encode_text, texts))

    def _encode_text(self, text):
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
        ids = []
        for word in _words(text):
            if word not in self._known:
                self._known[word] = self._word(word)
            ids += self._known[word]
        return ids

    def _word(self, word):
        """Ids of one word: the most frequent pair is merged, wherever it stands, until none is left."""
        letters = byte_letters()
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

    def _decode_text(self, ids, first=True):
        """In lower case, words apart."""
        bytes_of = {letter: byte for byte, letter in byte_letters().items()}
        words = "".join(self.pieces[i] for i in ids).replace(_END, " ").strip()
        return bytes(bytes_of.get(c, 32) for c in words).decode(errors="replace")

    def _text_byte_lengths(self):
        return [len(piece.removesuffix(_END)) for piece in self.pieces]

    def _contents(self):
        """merges.txt and vocab.json, as the transformers library reads them."""
        lines = (" ".join(pair) for pair in self._pairs)
        merges = "\n".join(("#version: 0.2", *lines, ""))  # it skips a line
        return {"merges.txt": merges.encode(), "vocab.json": json.dumps(self._ids).encode()}

    def _settings(self):
        return {}

    @classmethod
    def load(cls, directory):
        return clip_tokenizer(directory)


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


def clip_tokenizer(path):
    """CLIP's tokenizer from a directory with merges.txt or tokenizer.json, or from such a file, or OpenAI's .txt.gz.

    Raises:
        UserError: there is none.
    """
    path = expand(path)
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
