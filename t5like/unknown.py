"""How much of a text its tokenizer does not know: told where there is some, refused where it is a good part."""

import numpy as np

REFUSED = 1 / 3  # of the tokens


def count_in(ids, vocabulary):
    """How many of some ids stand for what the vocabulary does not know."""
    return 0 if vocabulary.unk is None else int(np.count_nonzero(ids == vocabulary.unk))


def told(meta, *counted):
    """The line of a summary that says how much of the text its tokenizer does not know. counted: names of counts."""
    unknown, total = _counts(meta, counted)
    if unknown:
        yield f"unknown    {unknown:,} of the {total:,} tokens ({100 * unknown / total:.2g} %) stand for what it lacks"


def complaint(meta, tokenizer, *counted):
    """What is wrong where most of the text is unknown to its tokenizer; None where it is not."""
    unknown, total = _counts(meta, counted)
    if total and unknown >= REFUSED * total:
        return (
            f"{unknown:,} of its {total:,} tokens are unknown to the tokenizer {tokenizer}: take one that is of such "
            "text (sentencepiece:SIZE and bpe:SIZE are learnt from any)"
        )
    return None


def _counts(meta, counted):
    """(tokens that are unknown, all tokens) of every split."""
    splits = meta["counts"].values()
    return sum(c.get("unknown", 0) for c in splits), sum(c[name] for c in splits for name in counted)
