"""The corruption against its definition (the T5 paper and reference code), written here slowly, one token at a time."""

import collections
import dataclasses
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.schedule import Cosine, Linear
from t5like import corrupt
from tests.t5like.vocabularies import elsewhere, t5_like

VOCAB, EXTRA = 1000, 100
T5 = t5_like(VOCAB, EXTRA)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A schedule: from `start` to `end` over 100 steps."""

    start: float
    end: float

    def __call__(self, step):
        return self.start + (self.end - self.start) * min(step / 100, 1.0)

    def extremes(self):
        return min(self.start, self.end), max(self.start, self.end)


def example(length, seed=0, padding=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCAB - EXTRA, length).astype(np.uint16)
    segments = np.ones(length, np.uint8)
    if padding:
        tokens[-padding:] = segments[-padding:] = 0
    return {"tokens": tokens, "segments": segments, "byte_lengths": rng.integers(1, 9, VOCAB).astype(np.float32)}


def slow_lengths(inputs_length, rate, mean_span):
    """random_spans_helper: the largest window whose inputs fit, one token at a time."""

    def lengths(n):
        noise = int(round(n * rate))
        spans = int(round(noise / mean_span))
        return n - noise + spans + 1, noise + spans + 1

    n = inputs_length - 1
    while lengths(n + 1)[0] <= inputs_length:
        n += 1
    if rate == 0.5 and lengths(n)[1] > lengths(n)[0]:
        n -= 1
    return n, lengths(n)[1]


def slow_sides(tokens, mask):
    """Inputs and targets by the definition: each masked run becomes a sentinel here, each kept run there."""
    sides = []
    for dropped in (True, False):
        out, sentinel, previous = [], VOCAB, not dropped
        for token, noisy in zip(tokens.tolist(), mask.tolist(), strict=True):
            if noisy != dropped:
                out.append(token)
            elif previous != dropped:
                sentinel -= 1
                out.append(sentinel)
            previous = noisy
        sides.append(out + [T5.eos])
    return sides


def reconstruct(inputs, targets):
    """The original text: each sentinel of the inputs opened with what follows it in the targets."""
    fills, key = {}, None
    for t in targets[:-1]:
        if t >= VOCAB - EXTRA:
            key, fills[t] = t, []
        else:
            fills[key].append(t)
    return list(itertools.chain.from_iterable(fills[t] if t >= VOCAB - EXTRA else [t] for t in inputs[:-1]))


def test_the_lengths_of_the_paper():
    plan = corrupt.span_plan(512, 0.15, 3.0)
    assert (plan.raw, plan.inputs, plan.targets) == (568, 512, 114)


@pytest.mark.parametrize("length", [16, 64, 255, 512, 1024])
@pytest.mark.parametrize("rate, mean_span", [(0.15, 3.0), (0.5, 3.0), (0.15, 32.0), (0.5, 32.0), (0.3, 1.0)])
def test_lengths_equal_the_reference(length, rate, mean_span):
    if round(length * rate) < mean_span:
        pytest.skip("less than one span")
    plan = corrupt.span_plan(length, rate, mean_span)
    assert (plan.raw, plan.targets) == slow_lengths(length, rate, mean_span)
    assert plan.inputs == length or (rate == 0.5 and plan.inputs == length - 1)  # the reference's own exception


def test_random_segmentation_is_uniform():
    rng = np.random.default_rng(0)
    n = 20_000
    counts = collections.Counter(tuple(corrupt.random_segmentation(rng, 7, 3).tolist()) for _ in range(n))
    assert len(counts) == 15  # 6 choose 2, all positive and of sum 7
    assert all(sum(c) == 7 and min(c) >= 1 for c in counts)
    expected = n / 15
    assert sum((k - expected) ** 2 / expected for k in counts.values()) < 40  # chi-squared, 14 degrees: p < 0.0003
    assert corrupt.random_segmentation(rng, 5, 1).tolist() == [5]
    assert corrupt.random_segmentation(rng, 4, 4).tolist() == [1, 1, 1, 1]


def test_masks():
    plan = corrupt.span_plan(512, 0.15, 3.0)
    rng = np.random.default_rng(1)
    masks = np.stack([corrupt.span_mask(rng, plan) for _ in range(2000)])
    assert masks.shape == (2000, 568) and (masks.sum(1) == 85).all()
    runs = (np.diff(np.pad(masks, ((0, 0), (1, 1))).astype(int)) == 1).sum(1)
    assert (runs == 28).all()
    assert not masks[:, 0].any() and masks[:, -1].all()
    # A token is masked with the same probability all along, but for the first and last few.
    np.testing.assert_allclose(masks[:, 50:-50].mean(0).reshape(-1, 26).mean(1), 0.15, atol=0.02)


@pytest.mark.parametrize(
    "length, rate, mean_span", [(64, 0.15, 3.0), (512, 0.15, 3.0), (128, 0.5, 3.0), (99, 0.3, 1.0)]
)
def test_against_the_slow_definition(length, rate, mean_span):
    noise = corrupt.SpanNoise(T5, length, rate, mean_span)
    ex = example(noise.raw_length)
    for seed in range(50):
        out = noise(ex, np.random.default_rng(seed), 0, True)
        mask = corrupt.span_mask(np.random.default_rng(seed), noise.plan(0))
        inputs, targets = slow_sides(ex["tokens"], mask)
        assert out["encoder_inputs"].tolist() == inputs and out["targets"].tolist() == targets
        assert len(inputs) == length and len(targets) == noise.target_length
        assert out["encoder_inputs"].dtype == out["targets"].dtype == np.int32 and out["text_bytes"].dtype == np.float32
        assert reconstruct(inputs, targets) == ex["tokens"].tolist()
        assert out["text_bytes"] == sum(ex["byte_lengths"][t] for t in targets if 2 < t < VOCAB - EXTRA)


def test_sentinels_of_a_large_vocabulary_do_not_wrap():
    noise = corrupt.SpanNoise(t5_like(70_000, 100), 64)
    ex = {**example(noise.raw_length), "byte_lengths": np.ones(70_000, np.float32)}
    out = noise(ex, np.random.default_rng(0), 0, True)
    assert out["targets"][0] == 69_999


def test_determined_by_the_generator_alone():
    noise = corrupt.SpanNoise(T5, 64, Ramp(0.1, 0.3))
    ex = example(noise.raw_length)
    made = lambda seed, step=50, train=True, n=noise: n(ex, np.random.default_rng(seed), step, train)
    run = lambda *a, **how: made(*a, **how)["encoder_inputs"].tolist()
    assert run([7, 3]) == run([7, 3]) == run([7, 3], n=pickle.loads(pickle.dumps(noise)))
    assert run([7, 3]) != run([7, 4])
    assert run(1, step=0, train=False) == run(1, step=90, train=False)


@pytest.mark.parametrize(
    "rate, mean_span",
    [
        (Ramp(0.15, 0.5), 3.0),
        (0.15, Ramp(2.0, 10.0)),
        (Ramp(0.5, 0.1), Ramp(9.7, 1.3)),
        (0.6, Ramp(3.0, 20.0)),
        (Linear(0.15, 100, final=0.5), Cosine(9.0, 90, final=2.0)),
    ],
)
def test_schedules_keep_shapes(rate, mean_span):
    noise = corrupt.SpanNoise(t5_like(VOCAB, 200), 200, rate, mean_span)
    ex = example(noise.raw_length)
    for step in range(0, 130):
        out = noise(ex, np.random.default_rng(step), step, True)
        assert out["encoder_inputs"].shape == (200,) and out["targets"].shape == (noise.target_length,)
        fixed = corrupt.SpanNoise(t5_like(VOCAB, 200), 200, corrupt.at(rate, step), corrupt.at(mean_span, step))
        ends = [int(np.flatnonzero(out[k] == T5.eos)[0]) + 1 for k in ("encoder_inputs", "targets")]
        assert 198 <= ends[0] <= 200 and abs(ends[1] - fixed.target_length) <= 2
        assert not out["encoder_inputs"][ends[0] :].any() and not out["targets"][ends[1] :].any()
    assert noise.plan(0, train=False) == noise.plan(10**6)


def test_a_longer_window_is_read_at_random_places_in_training_only():
    noise = corrupt.SpanNoise(T5, 64)
    ex = {**example(noise.raw_length + 30), "tokens": np.arange(3, noise.raw_length + 33)}
    first = lambda seed, train: noise(ex, np.random.default_rng(seed), 0, train)["encoder_inputs"][0]
    assert {first(s, True) for s in range(400)} == set(range(3, 34))
    assert {first(s, False) for s in range(20)} == {3}


def test_padding_is_not_masked():
    noise = corrupt.SpanNoise(T5, 64)
    for padding in (1, 20, noise.raw_length - 2):
        ex = example(noise.raw_length, padding=padding)
        out = noise(ex, np.random.default_rng(0), 0, True)
        strip = lambda a: a[: np.flatnonzero(a)[-1] + 1].tolist()
        assert reconstruct(strip(out["encoder_inputs"]), strip(out["targets"])) == ex["tokens"][:-padding].tolist()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(vocabulary=t5_like(103, 100)), "a vocabulary of 103 has no room for text beside 100 sentinels"),
        (
            dict(length=4096),
            "rate 0.15 and mean_span 3 needs 227 sentinels but .* has 100; set its extra_ids to at least 227",
        ),
        (dict(rate=0.0), "rate must lie strictly between 0 and 1, not 0"),
        (dict(rate=Ramp(0.1, 1.0)), "rate must lie strictly between 0 and 1, not 1"),
        (dict(mean_span=0.5), "mean_span is a number of tokens, at least 1, not 0.5"),
        (dict(length=3), "length 3 cannot hold"),
        (dict(rate=0.9, mean_span=1.0, length=40), "needs .* spans in .* tokens but leaves .* kept"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        corrupt.SpanNoise(**{"vocabulary": T5, "length": 512, **settings})


@pytest.mark.parametrize("rate, mean_span", [(0.5, 1.0), (0.6, 1.5), (0.75, 3.0)])
def test_a_short_text_has_no_more_spans_than_tokens_to_part_them(rate, mean_span):
    noise = corrupt.SpanNoise(T5, 33, rate, mean_span)
    for text in range(2, noise.raw_length):
        ex = example(noise.raw_length, padding=noise.raw_length - text)
        out = noise(ex, np.random.default_rng(0), 0, True)
        read, written = out["encoder_inputs"][out["encoder_segments"] > 0], out["targets"][out["segments"] > 0]
        assert reconstruct(read.tolist(), written.tolist()) == ex["tokens"][:text].tolist()


def test_windows_too_short():
    with pytest.raises(UserError, match="100 tokens but the objective reads 568: prepare the data with window=568"):
        corrupt.SpanNoise(T5, 512)(example(100), np.random.default_rng(0), 0, True)
    with pytest.raises(UserError, match="length must be at least 2"):
        corrupt.NextTokenWindows(T5, 1)


def test_next_token_windows():
    ex = example(20, padding=5)
    out = corrupt.NextTokenWindows(T5, 20)(ex, np.random.default_rng(0), 0, True)
    assert set(out) == {"inputs", "targets", "weights", "segments", "positions", "text_bytes"}
    assert out["targets"].tolist() == ex["tokens"].tolist() and out["segments"].tolist() == ex["segments"].tolist()
    assert all(out[k].dtype == np.int32 for k in ("inputs", "targets", "segments", "positions"))
    assert out["weights"].dtype == np.float32 and out["weights"].tolist() == [1] * 15 + [0] * 5
    assert out["text_bytes"] == ex["byte_lengths"][ex["tokens"][:15]].sum()
    shorter = corrupt.NextTokenWindows(T5, 8)
    first = {int(shorter(ex, np.random.default_rng(s), 0, True)["targets"][0]) for s in range(300)}
    assert first == set(ex["tokens"][:13].tolist())


def test_prefix_lengths():
    noise = corrupt.NextTokenWindows(T5, 20, prefix=True)
    ex = example(20, padding=5)
    outs = [noise(ex, np.random.default_rng(s), 0, True) for s in range(300)]
    assert {int(o["prefix"]) for o in outs} == set(range(1, 15))  # of 15: at least one read, one predicted
    for out in outs[:20]:
        assert out["prefix"].dtype == np.int32
        assert out["text_bytes"] == ex["byte_lengths"][ex["tokens"][out["prefix"] : 15]].sum()
        assert out["weights"].tolist() == [0] * out["prefix"] + [1] * (15 - out["prefix"]) + [0] * 5


def test_the_goldfish_loss_leaves_out_the_same_tokens_each_time():
    """A quarter of the targets, decided by the 13 tokens before each and by nothing else."""
    rng = np.random.default_rng(0)
    passage, ones = rng.integers(3, 90, 4000), np.ones(4000, int)
    first = corrupt.dropped(passage, ones, 4, 13)
    assert first.mean() == pytest.approx(0.25, abs=0.03) and not first[:13].any()
    again = corrupt.dropped(np.r_[rng.integers(3, 90, 50), passage], np.ones(4050, int), 4, 13)[50:]
    assert (again == first)[13:].all()
    for place in (20, 100, 2000):
        moved = corrupt.dropped(np.where(np.arange(4000) == place, 91, passage), ones, 4, 13)
        changed = np.flatnonzero(moved != first)
        assert len(changed) and place < changed.min() and changed.max() <= place + 13
    two = np.where(np.arange(4000) < 2000, 1, 2)
    assert not corrupt.dropped(passage, two, 4, 13)[2000:2013].any()
    ex = example(60)
    windows = corrupt.NextTokenWindows(T5, 60, goldfish=2, goldfish_context=3)
    train, valid = (windows(ex, rng, 0, mode) for mode in (True, False))
    left = ~corrupt.dropped(ex["tokens"], ex["segments"], 2, 3)
    assert train["weights"].tolist() == left.tolist() and 0 < left.sum() < 60 and valid["weights"].all()
    assert train["text_bytes"] == ex["byte_lengths"][ex["tokens"][left]].sum()
    for how, match in ((dict(goldfish=1), "one target in 1"), (dict(goldfish_context=0), "goldfish_context=0 tokens")):
        with pytest.raises(UserError, match=match):
            corrupt.NextTokenWindows(T5, 60, **how)


def test_no_jax_in_a_data_worker():
    code = "import sys, t5like.corrupt, t5like.tokenizers; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("vocabulary", [T5, elsewhere(VOCAB, EXTRA)], ids=["t5", "elsewhere"])
def test_the_batch_is_in_the_vocabulary_s_ids(vocabulary):
    """What stands for the start, the end, padding and masked spans comes from the vocabulary alone."""
    v, text = vocabulary, np.arange(200, 260)
    ex = {"tokens": text, "segments": np.ones(60, int), "byte_lengths": np.ones(VOCAB, np.float32)}
    noise = corrupt.SpanNoise(v, 32)
    ex = {**ex, "tokens": text[: noise.raw_length], "segments": (np.arange(noise.raw_length) < 20).astype(int)}
    out = noise(ex, np.random.default_rng(0), 0, True)
    encoder, targets = out["encoder_inputs"], out["targets"]
    for row, segments in ((encoder, out["encoder_segments"]), (targets, out["segments"])):
        length = int(segments.sum())
        assert segments.tolist() == [1] * length + [0] * (len(row) - length)
        assert row[length - 1] == v.eos and (row[length:] == v.pad).all() and length < len(row)
        used = [i for i in row[: length - 1].tolist() if i in v.sentinels]
        assert used == list(v.sentinels[: len(used)]) and used
    assert out["weights"].tolist() == out["segments"].tolist()
    assert out["inputs"][0] == (v.pad if v.bos is None else v.bos)
    length = int(out["segments"].sum())
    assert out["inputs"][1:length].tolist() == targets[: length - 1].tolist()

    segments = np.array([1] * 5 + [2] * 3 + [0] * 2)
    ex = {**ex, "tokens": np.where(segments, text[:10], v.filler), "segments": segments}
    out = corrupt.NextTokenWindows(v, 10)(ex, np.random.default_rng(0), 0, True)
    assert out["inputs"][[0, 5]].tolist() == [v.start] * 2
    assert out["inputs"][[1, 2, 3, 4, 6, 7]].tolist() == text[[0, 1, 2, 3, 5, 6]].tolist()
    assert out["positions"][:8].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert out["weights"].tolist() == [1] * 8 + [0] * 2 and out["text_bytes"] == 8
