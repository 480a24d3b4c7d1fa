"""Counting baselines against counts made one token at a time, on exactly the objective's targets."""

import functools
import math

import numpy as np
import pytest

from paradigm.dataset import Dataset
from paradigm.errors import UserError
from t5like.baselines import BigramBaseline, UnigramBaseline, kneser_ney, previous_tokens, token_pairs, training_windows
from t5like.models import gpt, t5
from t5like.objectives import NextToken, PrefixLM, SpanCorruption
from t5like.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer(20)
VOCAB = TOKENIZER.vocab_size


class Windows:
    """A source of windows in memory: repetitive text in two documents a window, the last window padded."""

    def __init__(self, count, length, seed):
        rng = np.random.default_rng(seed)
        words = np.array([TOKENIZER.encode(w) for w in ("the ", "cat ", "sat ", "mat ")])
        self.rows = []
        for i in range(count):
            tokens = words[rng.integers(4, size=length)].ravel()[:length].copy()
            segments = np.ones(length, np.int32)
            segments[length // 3 :] = 2
            tokens[length // 3 - 1] = TOKENIZER.eos_id
            if i == count - 1:
                tokens[-5:], segments[-5:] = 120, 0  # an id that spells text, as of a tokenizer without padding
            self.rows.append({"tokens": tokens, "segments": segments, "byte_lengths": TOKENIZER.byte_lengths})
        self.fingerprint = str(seed)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]

    def __getitems__(self, places):
        return [self.rows[i] for i in places]


class Data:
    """What an evaluator is given."""

    def __init__(self, objective):
        window = objective.raw_length
        self.train = Dataset(Windows(30, window, 0), objective.preprocess, 4)
        self.valid = Dataset(Windows(7, window, 1), objective.preprocess, 4, train=False)
        self.tokenizer = TOKENIZER

    def batches(self, phase=None):
        return (self.valid.batch(step) for step in range(len(self.valid)))


SPANS = SpanCorruption(t5("tiny"), length=40).bind(TOKENIZER.vocabulary)
NEXT = NextToken(gpt("tiny"), 32).bind(TOKENIZER.vocabulary)
PREFIX = PrefixLM(gpt("tiny"), 32).bind(TOKENIZER.vocabulary)


@pytest.mark.parametrize("objective", [SPANS, NEXT, PREFIX], ids=["spans", "next", "prefix"])
def test_unigram(objective):
    data = Data(objective)
    metrics, artefacts = UnigramBaseline().run(objective, None, data)
    counts = dict.fromkeys(range(3, VOCAB - 20), 1)
    for row in data.train.source.rows:
        for token in row["tokens"][row["segments"] > 0].tolist():
            if token > 2:
                counts[token] += 1
    total, bits, size = sum(counts.values()), 0.0, 0.0
    for batch in data.batches():
        for b in np.flatnonzero(batch["mask"]):
            row = batch["targets"][b][batch["segments"][b] > 0].tolist()
            for token in row[int(batch["prefix"][b]) if "prefix" in batch else 0 :]:
                if 2 < token < VOCAB - 20:
                    bits -= math.log2(counts[token] / total)
                    size += 1  # a byte tokenizer
    assert metrics == {"unigram/bits_per_byte": pytest.approx(bits / size)} and artefacts == []
    assert size == pytest.approx(sum(float((b["text_bytes"] * b["mask"]).sum()) for b in data.batches()))


def test_kneser_ney_by_the_formula():
    rng = np.random.default_rng(0)
    vocab, pairs = 12, rng.zipf(1.5, (2, 200)).clip(max=12) - 1
    pairs[0, pairs[0] == 5] = 4  # 5 is never seen as a context
    previous, tokens = pairs.tolist()
    score = kneser_ney(pairs[0] * vocab + pairs[1], vocab)
    table = {(v, w): sum(1 for p in zip(previous, tokens) if p == (v, w)) for v in range(vocab) for w in range(vocab)}
    once, twice = (sum(c == n for c in table.values()) for n in (1, 2))
    discount = once / (once + 2 * twice)
    before = [sum(table[v, w] > 0 for v in range(vocab)) + 1 for w in range(vocab)]
    for v in range(vocab):
        seen, followers = (sum(f(table[v, w]) for w in range(vocab)) for f in (int, bool))
        chances = []
        for w in range(vocab):
            q = before[w] / sum(before)
            p = max(table[v, w] - discount, 0) / seen + discount * followers / seen * q if seen else q
            assert score(np.array(v), np.array(w)) == pytest.approx(-math.log(p))
            chances.append(p)
        assert sum(chances) == pytest.approx(1.0)
    assert before[5] > 1 and not any(v == 5 for v in previous)


def test_bigram_scores_the_models_targets():
    data = Data(NEXT)
    metrics, _ = BigramBaseline().run(NEXT, None, data)
    rows = [token_pairs(r["tokens"], r["segments"], VOCAB, 0) for r in data.train.source.rows]
    score = kneser_ney(np.concatenate(rows), VOCAB)
    nats = bits = count = size = 0.0
    for batch in data.batches():
        for b in np.flatnonzero(batch["mask"]):
            tokens, segments = batch["targets"][b].tolist(), batch["segments"][b].tolist()
            for t, token in enumerate(tokens):
                if segments[t] == 0:
                    continue
                before = tokens[t - 1] if t and segments[t] == segments[t - 1] else 0
                nll = float(score(np.array(before), np.array(token)))
                nats, count = nats + nll, count + 1
                if token > 2:
                    bits, size = bits + nll / math.log(2), size + 1
    assert metrics == {"bigram/nll": pytest.approx(nats / count), "bigram/bits_per_byte": pytest.approx(bits / size)}
    unigram = UnigramBaseline().run(NEXT, None, data)[0]
    assert metrics["bigram/bits_per_byte"] < unigram["unigram/bits_per_byte"]


def test_left_to_right_counting_needs_such_an_objective():
    UnigramBaseline().check(SPANS, None)
    with pytest.raises(
        UserError, match="^BigramBaseline: SpanCorruption cannot continue a text, .*NextToken.* can: take"
    ):
        BigramBaseline().check(SPANS, None)


def test_document_starts():
    tokens, segments = np.array([5, 6, 7, 8, 9, 0]), np.array([1, 1, 2, 2, 2, 0])
    assert previous_tokens(tokens, segments, 0).tolist() == [0, 5, 0, 7, 8, 0]
    assert token_pairs(tokens, segments, 100, 0).tolist() == [5, 506, 7, 708, 809]


def test_a_large_vocabulary_is_sparse():
    rng = np.random.default_rng(0)
    vocab = 250_000
    pairs = rng.integers(vocab, size=1000) * vocab + rng.integers(vocab, size=1000)
    assert np.isfinite(kneser_ney(pairs, vocab)(np.array([0, 249_999]), np.array([249_999, 3]))).all()


def test_counted_once_for_each_data(monkeypatch):
    data, calls = Data(NEXT), []
    monkeypatch.setattr(UnigramBaseline, "compute", lambda *_: calls.append(1) or {"x": 1.0})
    run = functools.partial(UnigramBaseline().run, NEXT, None)
    assert run(data) == run(data) == run(Data(NEXT)) == ({"x": 1.0}, [])
    assert len(calls) == 2


def test_few_windows_are_spread_over_the_source():
    data = Data(NEXT)
    rows = data.train.source.rows
    picked = [next(i for i, r in enumerate(rows) if r["tokens"] is tokens) for tokens, _ in training_windows(data, 5)]
    assert picked == [0, 6, 12, 18, 24]
    assert len(list(training_windows(data, 1000))) == 30
