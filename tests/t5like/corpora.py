"""Small corpora, and what was prepared from them, for the tests of text data."""

import numpy as np

from t5like.data import TextData
from t5like.prepare import prepare
from t5like.windows import PreparedText

WORDS = "the a of ship whale sea Ahab captain white old said upon with and harpoon storm, night. day!\n".split(" ")


def text(seed, words=400):
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, words))


def make(source, out, window=32, workers=1, **settings):
    prepare(TextData(str(source), window=window, **settings), out, workers=workers, progress=False)
    return PreparedText(out)


def files(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def windows(prepared, split):
    source = prepared.source(split)
    return [source[i] for i in range(len(source))]


def documents(prepared, split):
    """Texts of the documents, put together again from the windows."""
    stream = np.concatenate([w["tokens"][w["segments"] > 0] for w in windows(prepared, split)])
    ends = np.flatnonzero(stream == prepared.tokenizer.eos_id)
    return [prepared.tokenizer.decode(part) for part in np.split(stream, ends + 1)[:-1]]
