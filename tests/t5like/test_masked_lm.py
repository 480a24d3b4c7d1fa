"""Masked language modelling: what is hidden and how, and the objective against a loop over hidden tokens."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from paradigm.schedule import Linear
from t5like.masking import Masking
from t5like.models import bert, t5
from t5like.objectives import MaskedLM, SpanCorruption
from t5like.objectives.base import scheduled_padding
from t5like.tokenizers import ByteTokenizer
from t5like.vocabulary import Vocabulary
from tests.t5like.test_span_corruption import slow_token

VOCAB, LENGTH = 60, 24
BARE = Vocabulary(VOCAB, pad=0, eos=1, mask=2)
FRAMED = Vocabulary(VOCAB, pad=0, eos=1, mask=2, cls=3, sep=4)
MODEL = bert("tiny", VOCAB, d_model=16, heads=2, d_ff=24, layers=2, init_std=0.3, dropout=0.0)
OBJECTIVE = MaskedLM(MODEL, LENGTH, rate=0.3, z_loss=0.01).bind(FRAMED)


def example(length, seed=0, padded=0):
    """Two documents, the first of which ends in eos, and padding."""
    tokens = np.random.default_rng(seed).integers(5, VOCAB, length)
    segments = np.repeat([1, 2], [length // 2, length - length // 2])
    tokens[length // 2 - 1] = 1
    if padded:
        tokens[-padded:], segments[-padded:] = 0, 0
    lengths = np.arange(VOCAB, dtype=np.float32)
    lengths[:5] = 0
    return {"tokens": tokens, "segments": segments, "byte_lengths": lengths}


def masked(masking, seed=0, step=0, train=True, **how):
    return masking(example(masking.raw_length, seed, **how), np.random.default_rng(seed), step, train)


@pytest.mark.parametrize("vocabulary", [BARE, FRAMED], ids=["bare", "framed"])
@pytest.mark.parametrize("unit", ["token", "span"])
def test_what_is_hidden_can_be_put_back(vocabulary, unit):
    masking = Masking(vocabulary, LENGTH, 0.3, unit)
    frame = 2 * (vocabulary.cls is not None)
    assert masking.raw_length == LENGTH - frame
    for seed in range(20):
        for padded in (0, 7):
            row = masked(masking, seed, padded=padded)
            original = example(masking.raw_length, seed, padded)
            text = int((original["tokens"] > 4).sum())
            count = int(row["weights"].sum())
            assert count == round(0.3 * text)
            places = row["positions"][:count]
            assert (np.diff(places) > 0).all() and (row["weights"][:count] == 1).all()
            np.testing.assert_array_equal(row["inputs"][:count], row["encoder_inputs"][places])
            np.testing.assert_array_equal(row["segments"][:count], row["encoder_segments"][places])
            back = row["encoder_inputs"].copy()
            back[places] = row["targets"][:count]
            used = back[: LENGTH - padded]
            if frame:
                assert used[0] == 3 and used[-1] == 4 and row["encoder_segments"][: len(used)].min() > 0
                used = used[1:-1]
            np.testing.assert_array_equal(used, original["tokens"][: len(used)])  # eos among it, which is never hidden
            assert (row["encoder_segments"][LENGTH - padded :] == 0).all()
            assert row["text_bytes"] == row["targets"][:count].sum()  # this test's byte lengths are the ids


def test_eight_in_ten_are_masked_one_is_any_and_one_stays():
    masking = Masking(Vocabulary(10_000, mask=0), 4000, 0.5)
    tokens = np.random.default_rng(0).integers(1, 10_000, 4000)
    full = {"tokens": tokens, "segments": np.ones(4000, int), "byte_lengths": np.ones(10_000, np.float32)}
    row = masking(full, np.random.default_rng(1), 0, True)
    shown, truth = row["inputs"], row["targets"]
    shares = [(shown == 0).mean(), ((shown != 0) & (shown != truth)).mean(), (shown == truth).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)  # 2000 of them: deviations of 0.009 and 0.007
    other = shown[(shown != 0) & (shown != truth)]
    assert abs(other.mean() - 5000) < 4 * 2887 / len(other) ** 0.5  # any id alike


def test_spans_are_geometric_and_hidden_alike():
    masking = Masking(Vocabulary(10_000, mask=0), 6000, 0.05, "span", masked=0.5, random=0.0)
    tokens = np.random.default_rng(0).integers(1, 10_000, 6000)
    full = {"tokens": tokens, "segments": np.ones(6000, int), "byte_lengths": np.ones(10_000, np.float32)}
    lengths, mixed = [], 0
    for seed in range(10):
        row = masking(full, np.random.default_rng(seed), 0, True)
        cuts = np.flatnonzero(np.diff(row["positions"]) > 1) + 1
        lengths += [len(run) for run in np.split(row["positions"], cuts)]
        mixed += sum(0 < (run == 0).mean() < 1 for run in np.split(row["inputs"], cuts))
    assert 3.6 < np.mean(lengths) < 4.3 and max(lengths) >= 10  # 3.8, and neighbours join
    assert mixed < 0.15 * len(lengths)


def test_spans_stay_in_their_document():
    masking = Masking(BARE, 400, 0.5, "span", masked=1.0, random=0.0)
    tokens, segments = np.full(400, 9), np.repeat(np.arange(1, 201), 2)
    full = {"tokens": tokens, "segments": segments, "byte_lengths": np.ones(VOCAB, np.float32)}
    drawn = [masking._draw(np.random.default_rng(s), np.arange(400), segments, 200) for s in range(3)]
    for hidden, kind in drawn:
        pairs = [k for k in np.split(kind, np.flatnonzero(np.diff(segments[hidden])) + 1) if len(k) == 2]
        assert np.mean([a == b for a, b in pairs]) > 0.3  # hidden at one time; two documents never are
        assert len(np.unique(kind)) >= len(np.unique(segments[hidden]))
    assert masking(full, np.random.default_rng(0), 0, True)["weights"].sum() == 200


def word_example(length, seed=0):
    """Ids divisible by 3 begin a word, and so does the second document, whose first id is none."""
    full = example(length, seed) | {"word_starts": np.arange(VOCAB) % 3 == 0}
    full["tokens"][length // 2 - 1 : length // 2 + 1] = 7
    return full


@pytest.mark.parametrize("unit, low, high", [("word", 1.0, 1.7), ("ngram", 1.7, 2.1), ("ngram4", 2.1, 3.0)])
def test_words_are_hidden_whole(unit, low, high):
    masking = Masking(BARE, 80, 0.3, unit, masked=1.0, random=0.0)
    runs, counts, apart = [], [], 0
    for seed in range(30):
        full = word_example(80, seed)
        row = masking(full, np.random.default_rng(seed), 0, True)
        places = row["positions"][: int(row["weights"].sum())]
        counts.append(len(places))
        assert (np.diff(places) > 0).all()
        tokens, segments = full["tokens"], full["segments"]
        begins = (tokens % 3 == 0) | (tokens < 5) | (np.diff(segments, prepend=0) > 0) | (np.roll(tokens, 1) < 5)
        word = np.cumsum(begins)
        for w in np.unique(word[places]):
            assert set(np.flatnonzero(word == w)) <= set(places), "a part of a word is seen"
        apart += len({*word[places]} & {word[39], word[40]}) == 1
        runs.append(len(np.unique(word[places])) / np.count_nonzero(np.diff(places, prepend=-2) > 1))
    assert apart > 3  # of the two words where one document ends and the other begins, one alone
    assert max(counts) <= 24 and np.mean(counts) > 21  # words that exceed the rate are left out
    assert low < np.mean(runs) < high  # words in a row: some meet by chance


def test_a_part_of_a_word_that_is_too_long_is_any_part():
    masking = Masking(BARE, 80, 0.3, "word", masked=1.0, random=0.0)
    full = example(80) | {"word_starts": np.zeros(VOCAB, bool)}
    rows = [masking(full, np.random.default_rng(seed), 0, True)["positions"] for seed in range(20)]
    assert {len(row) for row in rows} == {24} and len({row[0] for row in rows}) > 10


@pytest.mark.parametrize("unit", ["token", "span", "word", "ngram"])
def test_a_window_without_text_hides_nothing(unit):
    full = example(80) | {"word_starts": np.ones(VOCAB, bool)}
    full["segments"] = np.zeros(80, np.int32)
    row = Masking(BARE, 80, 0.3, unit)(full, np.random.default_rng(0), 0, True)
    assert not row["weights"].any() and not row["text_bytes"]


def test_words_need_to_be_known():
    with pytest.raises(UserError, match="needs word_starts"):
        masked(Masking(BARE, LENGTH, 0.3, "word"))


def test_the_rate_may_fall():
    masking = Masking(BARE, 100, Linear(peak=0.3, final=0.15, total_steps=100))
    count = lambda step, train=True: int(masked(masking, 0, step, train)["weights"].sum())
    assert masking.target_length == 30
    assert [count(0), count(50), count(100)] == [30, 22, 15] and count(0, train=False) == 15


def make_batch(objective):
    """Four rows: full ones, one with padding, and one that is padding of the batch."""
    rows = [masked(objective.preprocess, i, padded=p) for i, p in enumerate((0, 5, 0, 0))]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "index": jnp.array([[0, i] for i in range(4)], jnp.uint32), "mask": jnp.array([1.0, 1, 1, 0])}


def slow_loss(params, batch):
    """One hidden token at a time, from dense logits of its row without what is padding."""
    total, nll, correct, count, text_nll, text_bytes = 0.0, 0.0, 0, 0, 0.0, 0.0
    for b in range(3):
        segments = np.asarray(batch["encoder_segments"][b])
        have = int((segments > 0).sum())
        logits = dense(params, batch["encoder_inputs"][b : b + 1, :have], jnp.array(segments[None, :have]))
        for place, target, weight in zip(batch["positions"][b], batch["targets"][b], batch["weights"][b]):
            if not weight:
                continue
            loss, token_nll, hit = slow_token(logits[0, int(place)], int(target), 0.01)
            total, nll, correct, count = total + loss, nll + token_nll, correct + int(hit), count + 1
            text_nll, text_bytes = text_nll + token_nll / math.log(2), text_bytes + float(target)
    return total / count, dict(nll=(nll, count), accuracy=(correct, count), bits_per_byte=(text_nll, text_bytes))


@jax.jit
def dense(params, inputs, segments):
    return MODEL.apply({"params": params["model"]}, inputs, None, segments)[0]


def test_value_and_gradient():
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0))
    params["model"]["head"]["bias"] = jax.random.normal(jax.random.key(1), (VOCAB,))  # it starts at 0
    batch = make_batch(OBJECTIVE)
    run = lambda p: (lambda loss: (loss.value(), loss))(
        OBJECTIVE.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    (expected, metrics), slow_grads = jax.value_and_grad(slow_loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, pair in metrics.items():
        np.testing.assert_allclose(loss.metrics[name], pair, rtol=1e-5, err_msg=name)
    for path, slow in jax.tree_util.tree_leaves_with_path(slow_grads):
        fast = dict(jax.tree_util.tree_leaves_with_path(grads))[path]
        np.testing.assert_allclose(fast, slow, atol=3e-5, rtol=1e-3, err_msg=jax.tree_util.keystr(path))


def test_room_that_a_schedule_leaves_empty_is_told():
    """Half of the room, at the end of a rate that falls from 0.3 to 0.15; nothing is said of a fixed rate."""
    falling = dataclasses.replace(OBJECTIVE, rate=Linear(peak=0.3, final=0.15, total_steps=100))
    row = masked(falling.preprocess, 0, step=100)
    batch = {name: jnp.asarray(x)[None] for name, x in row.items()}
    batch |= {"index": jnp.zeros((1, 2), jnp.uint32), "mask": jnp.ones(1)}
    params, ctx = jax.eval_shape(OBJECTIVE.init, jax.random.key(0)), Context(jnp.int32(0), train=False)
    given = lambda o, which: jax.eval_shape(lambda p: o.loss(p, {}, which, ctx), params).metrics
    empty, places = scheduled_padding(batch, [falling.rate], "")["padding"]
    assert float(empty) == places - row["weights"].sum() and 0.4 < empty / places < 0.6
    assert "padding" in given(falling, batch) and "padding" not in given(OBJECTIVE, make_batch(OBJECTIVE))
    spans = SpanCorruption(t5("tiny", d_model=16, heads=2, layers=1), 32, rate=falling.rate)
    vocabulary = ByteTokenizer().vocabulary
    for objective, own in (
        (spans.bind(vocabulary), {"padding", "encoder_padding"}),
        (dataclasses.replace(spans, rate=0.3).bind(vocabulary), set()),
    ):
        spec = objective.batch_spec(2)
        params = jax.eval_shape(objective.init, jax.random.key(0))
        loss = jax.eval_shape(lambda p, b: objective.loss(p, {}, b, ctx), params, spec)
        assert {name for name in loss.metrics if "padding" in name} == own


def test_documents_do_not_see_each_other():
    batch, params = make_batch(OBJECTIVE), jax.jit(OBJECTIVE.init)(jax.random.key(0))
    first = batch["encoder_segments"][0] == 1
    out = lambda inputs: dense(params, inputs[None], batch["encoder_segments"][:1])[0]
    base = out(batch["encoder_inputs"][0])
    moved = out(jnp.where(first, batch["encoder_inputs"][0], 9))
    np.testing.assert_array_equal(base[first], moved[first])
    assert (jnp.abs(base - moved)[~first].max(-1) > 0).all()


def test_the_head_costs_what_is_scored():
    spec = OBJECTIVE.batch_spec(4)
    stack = MODEL.stack(parent=None).flops(4, LENGTH)
    scored = spec["targets"].shape[1]
    assert scored == round(0.3 * (LENGTH - 2)) and spec["encoder_inputs"].shape == (4, LENGTH)
    assert OBJECTIVE.forward_flops(spec)["model"] == stack + 2 * 4 * scored * 16 * (VOCAB + 16)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"rate": 0.0}, "rate must lie strictly between 0 and 1, not 0"),
        ({"rate": 1.0}, "rate must lie strictly between 0 and 1, not 1"),
        ({"masked": 0.8, "random": 0.3}, "nor their sum above 1"),
        ({"unit": "spam"}, "did you mean 'span'"),
        ({"length": 3}, "leaves no text"),
        ({"length": 513}, "512 learned positions"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(OBJECTIVE, **settings)


def test_a_vocabulary_without_a_mask():
    with pytest.raises(UserError, match=r"TextData.specials = \('mask',\)"):
        MaskedLM(MODEL, LENGTH).bind(Vocabulary(VOCAB, pad=0, eos=1))
