"""SigLIP's tokenizer: a SentencePiece model behind the cleaning of its training."""

import dataclasses
import functools
import hashlib
import string

from paradigm.errors import UserError
from paradigm.storage import expand
from t5like.tokenizers.base import Tokenizer
from t5like.tokenizers.sentence_piece import processor


@dataclasses.dataclass(frozen=True)
class SigLipTokenizer(Tokenizer):
    """SigLIP's: lower case, no punctuation, the pieces of a SentencePiece model, padded with its end id (big_vision).

    model: bytes of the serialised model (spiece.model), whose end id is 1.
    """

    model: bytes = dataclasses.field(repr=False)
    kind = "siglip"
    own = {"eos": 1, "pad": 1}

    def __getstate__(self):
        return {"model": self.model}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @functools.cached_property
    def _processor(self):
        found = processor(self.model)
        if found.eos_id() != self.own["eos"]:
            raise UserError(f"tokenizer: SigLIP's SentencePiece models end with 1; this one with {found.eos_id()}")
        return found

    @functools.cached_property
    def text_size(self):
        return self._processor.get_piece_size()

    @functools.cached_property
    def fingerprint(self):
        return f"siglip:{hashlib.sha256(self.model).hexdigest()}"

    def _encode_texts(self, texts):
        return list(map(self._encode_text, texts))

    def _encode_text(self, text):
        text = text.lower().translate(str.maketrans("", "", string.punctuation))
        return self._processor.encode(" ".join(text.split()))

    def _decode_text(self, ids, first=True):
        return self._processor.decode(ids)

    def _text_byte_lengths(self):
        return [len(self._processor.id_to_piece(i).replace("\u2581", " ").encode()) for i in range(self.text_size)]

    def _contents(self):
        return {"spiece.model": self.model}

    def _settings(self):
        return {}

    @classmethod
    def load(cls, directory):
        return siglip_tokenizer(directory)


def siglip_tokenizer(path):
    """SigLIP's tokenizer from a directory with spiece.model or tokenizer.model, or from such a file.

    Raises:
        UserError: there is none.
    """
    path = expand(path)
    for name in ("spiece.model", "tokenizer.model"):
        if (path / name).is_file():
            path = path / name
            break
    try:
        return SigLipTokenizer(path.read_bytes())
    except OSError as error:
        raise UserError(f"tokenizer: {path} holds no SentencePiece model ({error.strerror})") from None
