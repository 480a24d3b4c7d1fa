"""Vocabularies for tests: T5's layout, and one in which nothing is where T5 has it."""

from t5like.vocabulary import Vocabulary


def t5_like(size, extra_ids=0):
    """pad 0, eos 1, unk 2, and sentinels at the top, the first one highest."""
    return Vocabulary(size, pad=0, eos=1, unk=2, sentinels=tuple(range(size - 1, size - 1 - extra_ids, -1)))


def elsewhere(size, extra_ids=0):
    """Sentinels from 2 upwards, text from there, and at the end eos, bos, pad: id 0 and id 1 are text."""
    sentinels = tuple(range(2, 2 + extra_ids))
    return Vocabulary(size, pad=size - 1, bos=size - 2, eos=size - 3, sentinels=sentinels)
