"""UL2's mixture against its definitions on both architectures, its loss against a loop over tokens, what it refuses."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.denoisers import PUBLISHED, Mixture
from t5like.models import Encoder, gpt, t5
from t5like.objectives import UL2
from t5like.vocabulary import Vocabulary
from tests.t5like.test_span_corruption import slow_token

VOCAB, LENGTH = 64, 24
MODES = {"nlu": 60, "nlg": 61, "s2s": 62}
V = Vocabulary(VOCAB, pad=0, eos=1, sentinels=tuple(range(59, 49, -1)), **MODES)
SMALL = dict(d_model=16, heads=2, head_dim=8, d_ff=24, layers=2)
T5, GPT = t5("tiny", VOCAB, **SMALL), gpt("tiny", VOCAB, init_std=0.3, embed_std=1.0, **SMALL)
BOTH = {"encoder_decoder": UL2(T5, LENGTH, z_loss=0.01).bind(V), "decoder": UL2(GPT, LENGTH, z_loss=0.01).bind(V)}
both = pytest.mark.parametrize("name", BOTH)


def example(seed, padding=0):
    tokens, segments = np.random.default_rng(seed).integers(2, 50, LENGTH), np.ones(LENGTH, np.int32)
    if padding:
        tokens[-padding:], segments[-padding:] = 0, 0
    return {"tokens": tokens, "segments": segments, "byte_lengths": np.arange(VOCAB, dtype=np.float32)}


def made(objective, seed, padding=0):
    ex = example(seed, padding)
    return ex, objective.preprocess(ex, np.random.default_rng(seed), 0, True)


def sides(out):
    """(what is read, what is predicted) as lists, without padding."""
    if "prefix" in out:
        row = out["targets"][out["segments"] > 0].tolist()
        return row[: out["prefix"]], row[out["prefix"] :]
    return out["encoder_inputs"][out["encoder_segments"] > 0].tolist()[:-1], out["targets"][out["weights"] > 0].tolist()


@both
@pytest.mark.parametrize("padding", [0, 5])
def test_every_denoiser_can_be_undone(name, padding):
    """Each span in the place of its sentinel gives the text again; rates, spans and modes are the denoiser's."""
    seen = collections.Counter()
    for seed in range(280):
        ex, out = made(BOTH[name], seed, padding)
        text = ex["tokens"][: LENGTH - padding].tolist()
        denoiser = PUBLISHED[out["denoiser"]]
        seen[denoiser.name] += 1
        (mode, *read), (*wanted, end) = sides(out)
        assert mode == MODES[denoiser.mode] and end == 1
        hidden = [x for x in wanted if x < 50]
        assert len(hidden) == max(round(denoiser.rate * len(text)), 1) and out["text_bytes"] == sum(hidden)
        if denoiser.mean_span is None:
            assert read + wanted == text
            continue
        sentinels = [x for x in read if x >= 50]
        assert sentinels == [x for x in wanted if x >= 50] == list(V.sentinels[: len(sentinels)])
        assert len(sentinels) == max(round(len(hidden) / denoiser.mean_span), 1)
        spans = {s: [] for s in sentinels}
        for x in wanted:
            if x >= 50:
                last = x
            else:
                spans[last].append(x)
        assert [y for x in read for y in spans.get(x, [x])] == text
    assert set(seen) == {d.name for d in PUBLISHED} and min(seen.values()) > 20


def make_batch(objective):
    """The seven denoisers, one with padding, and a row that is padding of the batch."""
    rows, seed = {}, 0
    while len(rows) < len(PUBLISHED):
        out = made(objective, seed, padding=5 * (seed % 2))[1]
        rows.setdefault(int(out["denoiser"]), out)
        seed += 1
    rows = [*rows.values(), rows[0]]
    batch = {k: jnp.stack([r[k] for r in rows]) for k in rows[0]}
    batch["index"] = jnp.array([[0, i] for i in range(8)], jnp.uint32)
    return {**batch, "mask": jnp.float32(np.arange(8) < 7)}


@pytest.fixture(scope="module")
def params():
    return {name: jax.jit(objective.init)(jax.random.key(0)) for name, objective in BOTH.items()}


@jax.jit
def dense_t5(p, inputs, real, read):
    return T5.apply({"params": p["model"]}, inputs, read, input_segments=real)[0]


@jax.jit
def dense_gpt(p, read, visible):
    return GPT.apply({"params": p["model"]}, read, prefix=visible)[0]


def slow_loss(p, batch):
    """(loss, {denoiser: (nll, count)}), a target at a time; what is read is seen both ways, the rest is causal."""
    total, count, own = 0.0, 0, {d.name: (0.0, 0) for d in PUBLISHED}
    for b in range(7):
        row = {k: v[b : b + 1] for k, v in batch.items()}
        if "prefix" in batch:
            logits = dense_gpt(p, row["inputs"], row["prefix"] + 1)
        else:
            logits = dense_t5(p, row["encoder_inputs"], row["encoder_segments"], row["inputs"])
        name = PUBLISHED[int(batch["denoiser"][b])].name
        for t in np.flatnonzero(np.asarray(batch["weights"][b])):
            loss, nll, _ = slow_token(logits[0, t], int(batch["targets"][b, t]), 0.01)
            total, count, own[name] = total + loss, count + 1, (own[name][0] + nll, own[name][1] + 1)
    return total / count, own


@both
def test_value_and_gradient(name, params):
    objective, batch = BOTH[name], make_batch(BOTH[name])
    run = lambda p: (lambda loss: (loss.value(), loss))(
        objective.loss(p, {}, batch, Context(jnp.int32(0), train=False))
    )
    (value, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params[name])
    (expected, own), slow = jax.value_and_grad(slow_loss, has_aux=True)(params[name], batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for denoiser, pair in own.items():
        np.testing.assert_allclose(loss.metrics[f"{denoiser}/nll"], pair, rtol=1e-5, err_msg=denoiser)
    empty = (batch["segments"][:7] == 0).sum()
    assert loss.metrics["padding"][0] == empty > 0 and ("encoder_padding" in loss.metrics) == (name != "decoder")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-3), grads, slow)


@both
def test_batches_have_the_declared_shapes(name):
    shapes = lambda tree: {k: (v.shape, v.dtype) for k, v in tree.items()}
    assert shapes(make_batch(BOTH[name])) == shapes(BOTH[name].batch_spec(8))


def test_what_it_refuses():
    one = lambda *denoiser: Mixture(None, LENGTH, (denoiser,))
    for call, match in (
        (lambda: one("r", "nlu", 3.0, 1.0), "denoiser r: rate must lie strictly between 0 and 1, not 1"),
        (lambda: one("r", "abc", 3.0, 0.1), "denoiser r has mode 'abc'; choose among nlu, nlg, s2s and None"),
        (lambda: one("r", None, 0.5, 0.1), "mean_span is at least 1 token"),
        (lambda: one("r", None, 3.0, 0.1, 0.0), "share must be above 0"),
        (lambda: one("r", None, 1.0, 0.9), "denoiser r needs 22 spans in 24 tokens, 22 of them hidden"),
        (lambda: Mixture(None, LENGTH, ()), "denoisers need distinct names"),
        (lambda: UL2(T5, LENGTH).bind(Vocabulary(64, eos=1, nlu=2, nlg=3)), "ul2 needs s2s, and .*--specials=s2s"),
        (lambda: UL2(T5, 100).bind(V), "ul2: length 100 needs 17 sentinels but the tokenizer has 10"),
        (
            lambda: UL2(Encoder(vocab_size=64, d_model=8, heads=1, d_ff=8, layers=1)),
            "ul2 trains an EncoderDecoder or a Decoder, and the model is an Encoder: .* can train an Encoder",
        ),
        (lambda: UL2(gpt("tiny", 64, style="gpt2", max_length=8), LENGTH), "has 8 learned positions"),
    ):
        with pytest.raises(UserError, match=match):
            call()


def test_without_modes_no_vocabulary_needs_them():
    bare = tuple((*d[:1], None, *d[2:]) for d in PUBLISHED)
    objective = UL2(T5, LENGTH, bare).bind(Vocabulary(VOCAB, pad=0, eos=1, sentinels=V.sentinels))
    length = lambda one: one.batch_spec(1)["encoder_inputs"].shape[1]
    assert length(objective) == length(BOTH["encoder_decoder"]) - 1
