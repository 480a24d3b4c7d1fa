"""ViLT: both losses as its paper has them, and which captions of others stand beside a picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.tokenizers import ByteTokenizer
from tests import contract
from tests.multimodal import tiny
from tests.vision.tiny import params

TRAIN = Context(jnp.int32(0))
BATCH = tiny.captions_of(masked=5)(2)
REAL, LENGTH = 3, tiny.LENGTH


def end_of(row):
    return (row.tolist() + [1]).index(1)


def test_the_loss_is_the_papers():
    """In value and gradient, by a loop over rows: what is hidden and whose caption it is, as they are drawn."""
    objective, tokens = tiny.vilt(rate=0.4), BATCH["tokens"]
    draw = lambda name: np.stack([jax.random.uniform(key, (LENGTH,)) for key in TRAIN.keys(name, BATCH["index"])])
    noise, kind, other = (draw(name) for name in ("hidden", "kind", "other"))
    read, hidden, places = tokens.copy(), np.zeros(tokens.shape, bool), []
    for row in range(REAL):
        words = np.arange(1, end_of(tokens[row]))  # neither the start nor the end
        for t in words[np.argsort(noise[row, words])][: max(1, round(0.4 * len(words)))]:
            places.append((row, t))
            hidden[row, t] = kind[row, t] < 0.8
            if kind[row, t] >= 0.9:
                read[row, t] = int(other[row, t] * 259)
    pairs = jax.device_get(objective.paired(BATCH))
    matched, beside = pairs["matched"], pairs["pair_tokens"]
    assert hidden.any() and 0 < matched[:REAL].sum() < REAL

    @jax.jit
    @jax.value_and_grad
    def slow(p):
        variables = {"params": p}
        images = objective.views[0](BATCH["image"], BATCH["aspect"], TRAIN.keys("view/0", BATCH["index"]))
        table = p["encoder"]["embed"]["embedding"], p["encoder"]["positions"]["embedding"]

        def states(row, tokens, hidden=None):
            """Of the real tokens alone, which see each other and all patches."""
            n = end_of(beside[row] if hidden is None else BATCH["tokens"][row]) + 1
            x = table[0][tokens[:n]]
            if hidden is not None:
                x = jnp.where(hidden[:n, None], p["encoder"]["mask_token"][0, 0], x)
            patches = objective.apply("encoder", variables, images[row][None], method="see")[0]
            x = jnp.concatenate([patches, (x + table[1][:n])[None]], 1)
            return objective.encoder.apply(
                {"params": p["encoder"]}, x, method=lambda m, x: m.blocks(x, AttentionMask())
            )[0][0, -n:]

        mlm, itm = 0.0, 0.0
        for row in range(REAL):
            logits = states(row, read[row], hidden[row]) @ p["encoder"]["logits"]["kernel"]
            for i, t in places:
                mlm -= jax.nn.log_softmax(logits[t])[tokens[i, t]] / len(places) if i == row else 0.0
            head = p["pairs"]
            pooled = jnp.tanh(states(row, beside[row])[0] @ head["dense"]["kernel"] + head["dense"]["bias"])
            itm -= jax.nn.log_softmax(pooled @ head["out"]["kernel"] + head["out"]["bias"])[matched[row]] / REAL
        return mlm + itm

    fast = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, BATCH, TRAIN).value()))
    (value, slope), (wanted, wanted_slope) = fast(params(objective)), slow(params(objective))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 2e-5)


def captions(rows):
    tokens = np.zeros((len(rows), LENGTH), np.int32)
    for row, words in zip(tokens, rows):
        row[1 : len(words) + 2] = [*words, 1]
    n = len(rows)
    index = np.stack([np.zeros(n), np.arange(n)], 1).astype(np.uint32)
    return {"tokens": tokens, "mask": np.ones(n, np.float32), "index": index}


def test_a_caption_is_read_to_its_end_though_its_start_has_the_ends_id():
    """As GPT-2's vocabulary has it."""

    class Gpt2(ByteTokenizer):
        own = {"bos": 1, "eos": 1}

    objective = tiny.vilt(tokenizer=Gpt2(0))
    rows = objective.tokenize(["ab", "abcdefghijk"])
    assert rows[0, 0] == 1 and rows[0, 3] == 1
    assert objective.lengths(jnp.asarray(rows)).tolist() == [4, LENGTH]


def drawn(objective, batch, steps=100):
    """Pairs [steps, B, L] of the same captions at other places of the stream, and which are matched [steps, B]."""
    one = jax.jit(lambda index: objective.paired({**batch, "index": index}))
    found = [one(batch["index"] + np.uint32([0, len(batch["mask"]) * step])) for step in range(steps)]
    return tuple(np.stack([x[name] for x in found]) for name in ("pair_tokens", "matched"))


def test_the_other_caption_is_another_of_the_batch():
    """Never its own or an equal one, never one of padding, and half of the time."""
    batch = captions([(10, 11), (10, 11), (12, 13), (20, 21), (30, 31)])
    batch["mask"][4] = 0
    tokens, matched = drawn(tiny.vilt(), batch)
    own = (tokens == batch["tokens"]).all(-1)
    np.testing.assert_array_equal(own, matched > 0)
    assert 0.4 < matched[:, :4].mean() < 0.6
    assert not (tokens[:, :4] == batch["tokens"][4]).all(-1).any()
    seen = {tuple(row) for row in tokens[:, 3][matched[:, 3] == 0]}
    assert seen == {tuple(batch["tokens"][row]) for row in (0, 2)}
    alone = drawn(tiny.vilt(false=1.0), captions([(10, 11), (10, 11)]), 5)
    assert alone[1].all(), "where there is no other caption a picture keeps its own"


def test_hard_ones_share_words():
    """By the softmax of the cosines: words 10 and 11 in another order are the nearest to them."""
    batch = captions([(10, 11), (11, 10), (10, 13), (20, 21)])
    shares = []
    for hardness in (0.0, 3.0):
        tokens, _ = drawn(tiny.vilt(false=1.0, hardness=hardness), batch, 400)
        shares.append([np.mean((tokens[:, 0] == batch["tokens"][k]).all(-1)) for k in (1, 2, 3)])
    weights = np.exp(3.0 * np.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(shares, [[1 / 3] * 3, weights / weights.sum()], atol=0.08)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: tiny.vilt(false=-0.5), "ViLT.false=-0.5: a share lies from 0 to 1"),
        (lambda: tiny.vilt(encoder=tiny.simvlm().encoder), "ViLT hides tokens: set the encoder's mask_token=True"),
        (lambda: tiny.vilt().batch_spec(1), "ViLT: a batch of 1 has no pair to tell from another"),
    ],
)
def test_what_a_person_can_set_wrong(make, text):
    with pytest.raises(UserError, match=text):
        make()
