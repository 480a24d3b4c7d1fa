"""Texts too short for objectives of sentences, pairs and spans: refused where nothing can be learnt, else told."""

import json

import pytest

from paradigm.combine import Sum
from paradigm.errors import UserError
from t5like.models import bert, t5
from t5like.objectives import MaskedLM, Pegasus, SimCSE
from tests.t5like.corpora import make

SMALL = dict(d_model=16, heads=2, layers=1)
ENCODER = bert("tiny", style="modern", head=False, **SMALL)
PAIRS = bert("tiny", **SMALL)
SPANS = SimCSE(ENCODER, length=24, raw=32, shortest=8, pool="mean")
SENTENCES = "A whale. A ship! "
CASES = [
    (Pegasus(t5("tiny", **SMALL), length=33, target_length=16), "no end to it ", "two sentences"),
    (MaskedLM(PAIRS, length=19, pairs="order"), "ab", "a document of 4 tokens or more"),
    (MaskedLM(PAIRS, length=19, pairs="next"), "ab", "a document of 4 tokens or more"),
    (SPANS, "abcdef", "a document of 8 tokens or more"),
    (SimCSE(ENCODER.clone(dropout=0.1), length=24), "ab", "a document of 4 tokens or more"),
    (Sum(parts=(("spans", SPANS),), coefficients=(1.0,)), "abcdef", "a document of 8 tokens or more"),
]
NAMES = ["pegasus", "order", "next", "spans", "simcse", "sum"]


def prepared(tmp_path, texts):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return make(path, tmp_path / "out", window=32, valid=0.0, specials=("mask", "cls", "sep"))


@pytest.mark.parametrize("objective, short, wanted", CASES, ids=NAMES)
def test_texts_that_are_all_too_short_are_refused(objective, short, wanted, tmp_path):
    data = prepared(tmp_path, [short * 40] if "no end" in short else [short] * 400)
    with pytest.raises(UserError, match=f"texts too short: none of \\d+ windows of the training .* holds {wanted}"):
        objective.bind(data.tokenizer.vocabulary).check_data(data)


@pytest.mark.parametrize("objective, short, wanted", CASES, ids=NAMES)
def test_longer_texts_are_not(objective, short, wanted, tmp_path):
    del short, wanted
    data = prepared(tmp_path, [SENTENCES * 4] * 20)
    assert list(objective.bind(data.tokenizer.vocabulary).check_data(data)) == []


def test_most_texts_too_short_are_told(tmp_path):
    objective, short, wanted = CASES[1]
    data = prepared(tmp_path, [short] * 400 + [SENTENCES * 4] * 10)
    [line] = objective.bind(data.tokenizer.vocabulary).check_data(data)
    assert 50 < int(line.partition(" %")[0]) < 100 and wanted in line
