"""Forward passes of adapted modules against loops written from the papers, and who sees soft tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from paradigm.adapt import IA3, BottleneckAdapter, LoRA, PromptTuning
from paradigm.attention import AttentionMask
from paradigm.layers import Dense, Embed, LayerNorm
from paradigm.transformer import MLP, Attention, Stack
from t5like.decode import ModelAlone, Sampling, decode
from t5like.models import bert, gpt, t5
from tests.compiled import compiled

RNG = np.random.default_rng(0)
SIZE = {"d_model": 8, "heads": 2, "d_ff": 12}
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)


def made(module, adapt, *inputs):
    """(objective, its parameters, all drawn anew so that nothing is 0 or 1)."""
    objective = ModelAlone(module, adapt=adapt)
    with objective._adapted("model"):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    draw = lambda name, x: np.random.default_rng(len(name)).normal(size=x.shape).astype(np.float32) / 2
    return objective, trees.named_map(draw, shapes)


def apply(objective, params, *inputs, **how):
    return compiled(objective.apply, "model", {"params": {"model": params}}, *inputs, **how)[0]


@pytest.mark.parametrize("inputs, shape", [(1, (3, 2)), (2, (4,))])
@pytest.mark.parametrize("dora", [False, True])
def test_lora(inputs, shape, dora):
    x = RNG.normal(size=(3, 6) if inputs == 1 else (3, 2, 3)).astype(np.float32)
    adapt = LoRA(rank=2, alpha=3.0, rank_stabilized=True, targets=("kernel$",), dora=dora)
    objective, p = made(Dense(shape, inputs, True), adapt, x)
    found = np.asarray(apply(objective, p, x)).reshape(3, -1)
    w, a = p["kernel"].reshape(6, -1), p["lora_a"].reshape(6, 2)
    b, bias, s = p["lora_b"].reshape(2, -1), p["bias"].reshape(-1), 3.0 / 2**0.5
    for row in range(3):
        for j in range(w.shape[1]):
            column = [w[i, j] + s * sum(a[i, r] * b[r, j] for r in range(2)) for i in range(6)]
            if dora:
                m = np.linalg.norm(w[:, j]) + p["lora_magnitude"].reshape(-1)[j]
                column = [m * v / np.linalg.norm(column) for v in column]
            wanted = sum(v * x_i for v, x_i in zip(column, x[row].reshape(-1))) + bias[j]
            np.testing.assert_allclose(found[row, j], wanted, rtol=2e-5, atol=1e-5)


def test_dora_takes_its_norm_as_constant_in_the_gradient():
    """Liu et al. 2024, section 4.3: the gradient of A and B is that of m / C (W + s A B) x with C held."""
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    objective, p = made(Dense((4,)), LoRA(rank=2, alpha=2.0, targets=("kernel$",), dora=True), x)
    norm = np.linalg.norm(p["kernel"] + p["lora_a"] @ p["lora_b"], axis=0)

    def reference(p):
        m = jnp.linalg.norm(p["kernel"], axis=0) + p["lora_magnitude"]
        return jnp.sum(jnp.sin(x @ ((p["kernel"] + p["lora_a"] @ p["lora_b"]) * m / norm)))

    found, wanted = (jax.jit(jax.grad(f))(p) for f in (lambda p: jnp.sum(jnp.sin(apply(objective, p, x))), reference))
    for name in ("lora_a", "lora_b", "lora_magnitude"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_lora_of_an_embedding():
    ids = np.array([[0, 3, 3]])
    objective, p = made(Embed(5, 4), LoRA(rank=2, alpha=4.0, targets=("embedding$",)), ids)
    wanted = [[p["embedding"][i] + 2.0 * sum(p["lora_a"][i, r] * p["lora_b"][r] for r in range(2)) for i in ids[0]]]
    np.testing.assert_allclose(apply(objective, p, ids), wanted, rtol=1e-5, atol=1e-6)


def adapter(p, x, act, scale=1.0):
    h = act(x @ p["down"]["kernel"] + p["down"]["bias"])
    return scale * (h @ p["up"]["kernel"] + p["up"]["bias"])


RELU, SILU = (lambda x: np.maximum(x, 0)), (lambda x: x / (1 + np.exp(-x)))


def test_adapters_after_branches_and_beside_them():
    mlp, attention = MLP(**SIZE), Attention(**SIZE, name="attention")
    for style, act, scale in (("houlsby", SILU, 1.0), ("parallel", RELU, 4.0)):
        objective, p = made(mlp, BottleneckAdapter(style=style, width=3), X)
        plain = np.asarray(mlp.apply({"params": {n: x for n, x in p.items() if n != "adapter"}}, X))
        wanted = plain + adapter(p["adapter"], plain if style == "houlsby" else X, act, scale)
        np.testing.assert_allclose(apply(objective, p, X), wanted, rtol=1e-4, atol=1e-5)
    objective, p = made(attention, BottleneckAdapter(width=3), X, AttentionMask())
    plain, _ = compiled(attention.apply, {"params": {n: x for n, x in p.items() if n != "adapter"}}, X, AttentionMask())
    wanted = plain + adapter(p["adapter"], np.asarray(plain), SILU)
    np.testing.assert_allclose(apply(objective, p, X, AttentionMask()), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_one_adapter_a_layer(place):
    stack = Stack(**SIZE, layers=1, norm="layer", norm_place=place)
    objective, p = made(stack, BottleneckAdapter(style="pfeiffer", width=3), X, AttentionMask())
    found = compiled(objective.apply, "model", {"params": {"model": p}}, X, AttentionMask())[1]["layers"][0]
    p = jax.tree.map(lambda x: x[0], p["layers"])
    norm = lambda name, x: LayerNorm(eps=1e-6).apply({"params": {k: p[name][k] for k in ("scale", "bias")}}, x)
    attend = lambda x: Attention(**SIZE).apply({"params": p["attention"]}, x, AttentionMask())[0]
    mlp = lambda x: MLP(**SIZE).apply({"params": p["mlp"]}, x)
    if place == "pre":
        x = X + attend(norm("attention_norm", X))
        x = x + mlp(norm("mlp_norm", x))
        wanted = x + adapter(p["adapter"], np.asarray(x), RELU)
    else:
        x = norm("attention_norm", X + attend(X))
        both = x + mlp(x)
        wanted = norm("mlp_norm", both + adapter(p["adapter"], np.asarray(norm("mlp_norm", both)), RELU))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ia3", "prefix"])
def test_scaled_and_prefixed_attention(method):
    """By a loop over rows, heads and queries; causal, two documents in the second row."""
    adapt = IA3(inputs=()) if method == "ia3" else PromptTuning(length=3, place="attention")
    segments = np.array([[1, 1, 1, 1, 1], [1, 1, 2, 2, 0]])
    mask = AttentionMask(True, queries=segments, keys=segments)
    adapt = dataclasses.replace(adapt, outputs=("(key|value)/kernel$",)) if method == "ia3" else adapt
    objective, p = made(Attention(**SIZE, name="attention"), adapt, X, mask)
    found = np.asarray(apply(objective, p, X, mask))
    wanted = np.zeros_like(found)
    q, k, v = (np.einsum("bld,dhk->bhlk", X, p[name]["kernel"]) for name in ("query", "key", "value"))
    if method == "ia3":
        k, v = k * p["key"]["ia3"][:, None], v * p["value"]["ia3"][:, None]
    for b in range(2):
        for h in range(2):
            for i in range(5):
                seen = [j for j in range(i + 1) if segments[b, j] == segments[b, i]]
                keys, values = list(k[b, h, seen]), list(v[b, h, seen])
                if method == "prefix":
                    keys, values = [*p["prefix_key"][:, h], *keys], [*p["prefix_value"][:, h], *values]
                weights = np.exp([q[b, h, i] @ key / 2 for key in keys])
                y = sum(w * value for w, value in zip(weights / weights.sum(), values))
                wanted[b, i] += y @ p["out"]["kernel"][h]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_ia3_in_the_mlp():
    objective, p = made(MLP(**SIZE, activation="relu"), IA3(outputs=(), inputs=("down/kernel$",)), X)
    wanted = (p["down"]["ia3"] * RELU(X @ p["up"]["kernel"])) @ p["down"]["kernel"]
    np.testing.assert_allclose(apply(objective, p, X), wanted, rtol=1e-4, atol=1e-5)


# ---- Soft tokens -----------------------------------------------------------------------------------------------------

SMALL = {**SIZE, "layers": 2, "embed_std": 1.0}
MODELS = {
    "gpt2": gpt("tiny", 30, style="gpt2", max_length=60, **SMALL),
    "llama": gpt("tiny", 30, **SMALL),
    "window": gpt("tiny", 30, window=3, **SMALL),
    "bert": bert("tiny", 30, max_length=40, head=False, **SMALL),
}
PLACES = {place: PromptTuning(length=4, place=place, std=1.0) for place in ("input", "attention")}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("name", list(MODELS))
def test_who_sees_soft_tokens_and_whom_tokens_see(name, place):
    """By gradient: output t depends on every soft token, on no later token of a Decoder and on no other document."""
    model, tokens = MODELS[name], np.arange(3, 11)[None]
    objective, p = made(model, PLACES[place], tokens)
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    causal = name != "bert"
    segments = segments if causal else np.array([[1, 1, 1, 1, 1, 1, 1, 0]])
    leaf = "soft" if place == "input" else "prefix_value"
    path = next(n for n, _ in trees.named_leaves(p) if n.endswith(leaf))
    table = np.eye(30, 8, dtype=np.float32) + p["embed"]["embedding"]

    def out(soft, rows):
        changed = trees.merge(p, trees.nested({path: soft, "embed/embedding": table}))
        changed["embed"]["embedding"] = jnp.asarray(table).at[tokens[0]].set(rows)
        how = {"segments": segments} | ({"positions": np.array([[0, 1, 2, 3, 0, 1, 2, 3]])} if causal else {})
        hidden, more, _ = objective.apply("model", {"params": {"model": changed}}, tokens, **how, method="hidden")
        assert more["layers"].shape == (2, 1, 8, 8) and hidden.shape == (1, 8, 8)
        return hidden[0].sum(-1) + (hidden[0] ** 2).sum(-1)

    soft = dict(trees.named_leaves(p))[path]
    to_soft, to_rows = jax.jit(jax.jacobian(out, (0, 1)))(soft, table[tokens[0]])
    if place == "input":
        assert np.all(np.abs(to_soft).max(-1)[:7] > 0)  # [L, P]
    else:
        assert np.all(np.abs(to_soft).max((1, 3, 4))[:7] > 0)  # [L, n, P, G, K]
    for t in range(7):
        for s in range(8):
            near = name != "window" or t - s < 2 * 2 + 1
            seen = segments[0, t] == segments[0, s] and (not causal or s <= t) and near
            assert (np.abs(to_rows[t, s]).max() > 0) == seen, (t, s)


CACHED = [("gpt2", "input", False), ("gpt2", "attention", False), ("llama", "input", True),
          ("llama", "attention", True), ("window", "input", False)]  # fmt: skip


@pytest.mark.parametrize("name, place, prefix", CACHED)
def test_decoding_with_a_cache_is_decoding_without(name, place, prefix):
    objective, p = made(MODELS[name], PLACES[place], np.arange(3, 11)[None])
    variables = {"params": {"model": p}}
    prompts, lengths = np.array([[3, 9, 4, 7], [5, 6, 0, 0]], np.int32), np.array([4, 2], np.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    found = np.asarray(decode(objective, variables, prompts, lengths, keys, 5, Sampling(), -1, prefix=prefix))
    read = jax.jit(lambda tokens, **how: objective.apply("model", variables, tokens, **how)[0][0])
    for row in range(2):
        text = list(prompts[row, : lengths[row]])
        for token in found[row]:
            how = {"prefix": lengths[row : row + 1]} if prefix else {}
            logits = read(np.array([text + [0] * (9 - len(text))]), **how)[len(text) - 1]  # nobody sees what follows
            assert token == np.argmax(logits) and np.partition(logits, -2)[-1] - np.partition(logits, -2)[-2] > 1e-4
            text.append(token)


def test_an_encoder_decoders_source_has_soft_tokens_before_it():
    model = t5("tiny", 30, **SMALL)
    source, target = np.array([[3, 4, 5, 6, 7, 0]]), np.array([[0, 8, 9, 10]])
    real = np.array([[1, 1, 1, 1, 1, 0]])
    objective, p = made(model, PLACES["input"], source, target)
    assert "soft" in p["encoder"] and "soft" not in p["decoder"]
    variables = {"params": {"model": p}}
    how = {"input_segments": real, "target_segments": np.ones_like(target)}
    found = compiled(objective.apply, "model", variables, source, target, **how)[0]
    # The same by hand: what the encoder reads is 4 vectors longer, and so is what the decoder attends to.
    base = {**p, "encoder": {n: x for n, x in p["encoder"].items() if n != "soft"}}

    def by_hand(self):
        x = jnp.concatenate([p["encoder"]["soft"][None], self.embed(source)], 1)
        longer = np.pad(real, ((0, 0), (4, 0)), constant_values=1)
        encoded, _ = self.encoder(x, AttentionMask(queries=longer, keys=longer))
        hidden, _ = self.decode(encoded, target, input_segments=longer, target_segments=np.ones_like(target))
        return self.score(hidden)

    np.testing.assert_allclose(found, compiled(model.apply, {"params": base}, method=by_hand), rtol=1e-4, atol=1e-4)
    args = np.array([[0]], np.int32), np.array([1], np.int32), jax.random.split(jax.random.key(0), 1)
    tokens = np.asarray(decode(objective, variables, *args, 4, Sampling(), -1, source, real))[0]
    how["target_segments"] = np.ones((1, 5), int)
    read = jax.jit(lambda target: objective.apply("model", variables, source, target, **how)[0][0])
    text = [0]
    for token in tokens:
        assert token == np.argmax(read(np.array([text + [0] * (5 - len(text))]))[len(text) - 1])
        text.append(token)


def test_soft_tokens_that_begin_as_words():
    adapt = PromptTuning(length=4, tokens=(7, 9, 5))
    model, tokens = MODELS["llama"], np.arange(3, 11)[None]
    objective, p = made(model, adapt, tokens)
    p["decoder"]["soft"] = np.zeros_like(p["decoder"]["soft"])
    base = {**p, "decoder": {n: x for n, x in p["decoder"].items() if n != "soft"}}
    longer = np.concatenate([[[7, 9, 5, 7]], tokens], 1)
    wanted = compiled(model.apply, {"params": base}, longer)[0][:, 4:]
    np.testing.assert_allclose(apply(objective, p, tokens), wanted, rtol=1e-4, atol=1e-5)
    assert dataclasses.replace(adapt, tokens=(), text="7 9 5").worded(str.split) == adapt
    assert len(set(PromptTuning(start="vocabulary").ids(6000))) == 20
