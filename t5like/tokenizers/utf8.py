"""UTF-8 bytes as ids: a tokenizer in the box."""

import dataclasses

import numpy as np

from t5like.tokenizers.base import Tokenizer, checked_specials


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """pad 0, eos 1, unk 2, then byte b at b + 3 (ByT5, Xue et al. 2022, section 3.1), then sentinels. Loses nothing."""

    extra_ids: int = 100
    specials: tuple[str, ...] = ()
    kind = "bytes"
    text_size = 3 + 256
    own = {"pad": 0, "eos": 1, "unk": 2}

    def __post_init__(self):
        object.__setattr__(self, "specials", checked_specials(self.specials))

    @property
    def fingerprint(self):
        return f"bytes:{self._beside}"

    def _encode_texts(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]

    def _decode_text(self, ids, first=True):
        return bytes(i - 3 for i in ids).decode(errors="replace")

    def _text_byte_lengths(self):
        return np.r_[np.zeros(3), np.ones(256)]

    def _text_word_starts(self):
        return np.isin(np.arange(self.text_size), [ord(space) + 3 for space in " \n\t\r"])

    @classmethod
    def load(cls, directory, extra_ids, specials=()):
        del directory
        return cls(extra_ids, specials)
