"""Sentences of a window of tokens, by one simple rule. Pure numpy: this runs in data workers.

A sentence ends after each run of tokens whose text ends in one of . ! ? or in a line break (fairseq's DenoisingDataset
has the full stop alone), after each document, and where the text ends. Abbreviations and the dots within numbers of a
byte tokenizer end one too: the objectives that move or hide sentences need pieces, and no grammar.
"""

import numpy as np

ENDS = (".", "!", "?", "\n")


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
