"""Sentences of a window of tokens, by one simple rule. Pure numpy: this runs in data workers.

A sentence ends after each run of tokens whose text ends in one of . ! ? or what other scripts have for them, or in a
line break (fairseq's DenoisingDataset has the full stop alone), after each document, and where the text ends. For a
byte tokenizer only ASCII's do. Abbreviations and the dots within numbers of a byte tokenizer end one too: the
objectives that move or hide sentences need pieces, and no grammar.
"""

import numpy as np

ENDS = (*".!?\n", *"。！？｡", *"।॥", *"؟۔", "።")  # Latin and more; Chinese, Japanese; Hindi; Arabic, Urdu; Amharic
# Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Kana, Han.
UNSPACED = (
    "[\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u1000-\u103f\u1780-\u17d3\u3005-\u3007\u3041-\u309f\u30a1-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def sentence_ends(texts):
    """bool [V]: which of these texts of ids end a sentence."""
    return np.array([text.rstrip(" ").endswith(ENDS) for text in texts], bool)


def sentences(tokens, ends, segments=None):
    """int64 [n + 1]: where each of the n sentences begins, and the number of tokens.

    tokens: int [L], all of them text. ends: bool [V], see `sentence_ends`. segments: int [L], documents, or None.
    """
    last = ends[tokens]
    last[:-1] &= ~last[1:]  # the end of each run
    if segments is not None:
        last[:-1] |= segments[1:] != segments[:-1]
    if len(last):
        last[-1] = True
    return np.r_[0, np.flatnonzero(last) + 1]
