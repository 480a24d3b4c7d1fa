"""Encoder, Decoder, EncoderDecoder: who sees whom, caches, sizes, sharding rules, FLOPs, mistakes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import partition, trees
from paradigm.errors import UserError
from paradigm.hf.family import config_of
from t5like import hf
from t5like.models import GPT_SIZES, PARTITION_RULES, T5_SIZES, Encoder, bert, gpt, t5

SMALL = {"d_model": 32, "heads": 4, "head_dim": 8, "d_ff": 48, "layers": 2}
VOCABULARY = 40
FAMILIES = {
    "t5": lambda **f: t5("tiny", VOCABULARY, **{**SMALL, **f}),
    "t5 1.0": lambda **f: t5("tiny", VOCABULARY, "1.0", **{**SMALL, **f}),
    "gpt": lambda **f: gpt("tiny", VOCABULARY, **{**SMALL, **f}),
    "gpt2": lambda **f: gpt("tiny", VOCABULARY, "gpt2", **{**SMALL, "max_length": 32, **f}),
    "grouped": lambda **f: gpt("tiny", VOCABULARY, **{**SMALL, "kv_heads": 2, "qk_norm": True, "window": 3, **f}),
    "encoder": lambda **f: Encoder(**{"vocab_size": VOCABULARY, "positions": "relative", **SMALL, **f}),
}
PAIRS = ("t5", "t5 1.0")  # which differ in their MLPs and tables: one of them shows who sees whom
one_of_pairs = pytest.mark.parametrize("family", ["t5", pytest.param("t5 1.0", marks=pytest.mark.slow)])
DECODERS = ("gpt", "gpt2")


def tokens(batch=2, length=9, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 1, VOCABULARY)


def inputs(family):
    return (tokens(length=7), tokens(seed=1)) if family in PAIRS else (tokens(),)


def made(family, **fields):
    model = FAMILIES[family](**fields)
    return model, jax.jit(model.init)(jax.random.key(0), *inputs(family))


@functools.partial(jax.jit, static_argnames=("model", "method"))
def run(model, variables, *args, method="__call__", **how):
    return model.apply(variables, *args, method=method, **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_hidden_times_output_kernel(family):
    model, variables = made(family)
    logits, intermediates = run(model, variables, *inputs(family))
    hidden, _ = run(model, variables, *inputs(family), method="hidden")
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(hidden @ model.output_kernel(variables["params"]), logits, atol=1e-5)
    np.testing.assert_array_equal(intermediates["hidden"], hidden)
    assert intermediates["layers"].shape == (2, *hidden.shape) and intermediates["embedded"].shape == hidden.shape


def losses_by_input(model, variables, x, **kwargs):
    """[L, L]: |d loss[t] / d embedding of input s| for the first row, through every path from token to loss."""
    embedding = variables["params"]["embed"]["embedding"]

    def losses(rows):  # a row of the table for each position, so that equal tokens stay apart
        table = jnp.concatenate([rows, embedding])
        params = {**variables["params"], "embed": {"embedding": table}}
        ids = (x + len(rows)).at[0].set(jnp.arange(len(rows)))
        hidden, _ = model.clone(vocab_size=len(table)).apply({"params": params}, ids, method="hidden", **kwargs)
        logits = hidden[0] @ model.output_kernel(variables["params"])
        return -jax.nn.log_softmax(logits)[:, 3]

    return np.abs(np.asarray(jax.jit(jax.jacobian(losses))(embedding[x[0]]))).max(-1)


@pytest.mark.parametrize("family", DECODERS)
def test_loss_sees_the_past_only(family):
    model, variables = made(family)
    assert ((losses_by_input(model, variables, tokens()) > 0) == np.tri(9, dtype=bool)).all()


def test_loss_sees_a_window_of_the_past():
    near = np.tri(9, dtype=bool) & ~np.tri(9, k=-3, dtype=bool)
    model, variables = made("grouped", layers=1)
    assert ((losses_by_input(model, variables, tokens()) > 0) == near).all()
    model, variables = made("encoder", layers=1, window=3)
    segments = jnp.ones((2, 9), jnp.int32)  # without, id 0 is padding
    assert ((losses_by_input(model, variables, tokens(), segments=segments) > 0) == (near | near.T)).all()


@pytest.mark.parametrize("family", DECODERS)
def test_loss_sees_the_prefix_too(family):
    model, variables = made(family)
    wanted = np.tri(9, dtype=bool)
    wanted[:, :4] = True
    assert ((losses_by_input(model, variables, tokens(), prefix=jnp.array([4, 0])) > 0) == wanted).all()


@pytest.mark.parametrize("family", DECODERS)
def test_packed_documents_are_read_apart(family):
    model, variables = made(family)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9))])
    packed = dict(segments=segments, positions=positions)
    got = losses_by_input(model, variables, tokens(), **packed) > 0
    assert (got == (np.tri(9, dtype=bool) & np.asarray(segments[0][:, None] == segments[0]))).all()
    whole, _ = run(model, variables, tokens(), **packed)
    alone, _ = run(model, variables, tokens()[:1, 4:7])
    np.testing.assert_allclose(whole[0, 4:7], alone[0], atol=1e-5)


@one_of_pairs
def test_encoder_decoder_sees(family):
    """Targets see all inputs but padding and the targets before; packed pairs see their own."""
    model, variables = made(family)
    source, target = tokens(length=7), tokens(seed=1)
    seen = lambda s, t, **kw: run(model, variables, s, t, **kw)[0][0]
    plain = seen(source, target)
    changed = lambda a, b: np.abs(np.asarray(a - b)).max(-1) > 1e-6
    other = lambda x, i: x.at[0, i].set(x[0, i] % (VOCABULARY - 1) + 1)
    for i in range(9):
        assert (changed(seen(source, other(target, i)), plain) == (np.arange(9) >= i)).all()
    for i in range(7):
        assert changed(seen(other(source, i), target), plain).all()
    real = jnp.int32(source > 0).at[0, 5:].set(0)
    np.testing.assert_allclose(seen(source, target, input_segments=real), seen(source[:, :5], target), atol=1e-5)
    of_inputs, of_targets = jnp.array([[1, 1, 1, 2, 2, 2, 0]] * 2), jnp.array([[1] * 4 + [2] * 5] * 2)
    packed = seen(source, target, input_segments=of_inputs, target_segments=of_targets)
    np.testing.assert_allclose(packed[:4], seen(source[:, :3], target[:, :4]), atol=1e-5)
    np.testing.assert_allclose(packed[4:], seen(source[:, 3:6], target[:, 4:]), atol=1e-5)


@pytest.mark.parametrize(
    "scan, family",
    [(True, "gpt"), (True, "gpt2"), (True, "grouped"), (False, "gpt")]
    + [pytest.param(False, name, marks=pytest.mark.slow) for name in ("gpt2", "grouped")],
)
def test_cache_equals_no_cache(scan, family):
    """Ragged prompts read padded in one call, then one token at a time."""
    model, variables = made(family, scan=scan)
    x, lengths = tokens(length=9), jnp.array([5, 3])
    whole, _ = run(model, variables, x)  # of which a place has seen what is before it
    logits, intermediates = run(model, variables, x[:, :5], cache=model.new_cache(2, 12))
    cache = {**intermediates["cache"], "index": lengths}
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :n], whole[row, :n], atol=1e-5)
    for step in range(4):
        now = jnp.stack([x[row, n + step] for row, n in enumerate(lengths)])[:, None]
        logits, intermediates = run(model, variables, now, cache=cache)
        cache = intermediates["cache"]
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(logits[row, 0], whole[row, n + step], atol=1e-5)


@one_of_pairs
def test_encoder_decoder_cache_equals_no_cache(family):
    model, variables = made(family)
    source, target = tokens(length=7), tokens(seed=1)
    how = {"input_segments": jnp.ones_like(source).at[0, 5:].set(0)}
    whole, _ = run(model, variables, source, target, **how)
    encoded, _ = run(model, variables, source, method="encode", **how)
    cache = model.new_cache(2, 12)
    for step in range(9):
        given = encoded if step == 0 else None  # the source's keys and values stay in the cache
        now = target[:, step : step + 1]
        hidden, intermediates = run(model, variables, given, now, cache=cache, method="decode", **how)
        logits, cache = run(model, variables, hidden, method="score"), intermediates["cache"]
        np.testing.assert_allclose(logits[:, 0], whole[:, step], atol=2e-5)


def test_decoder_depth_of_its_own():
    model, variables = made("t5", decoder_layers=1)
    depth = lambda side: variables["params"][side]["layers"]["mlp"]["up"]["kernel"].shape[0]
    assert (depth("encoder"), depth("decoder")) == (2, 1)


def test_encoder_and_decoder_draw_different_masks():
    model, variables = made("t5", dropout=0.5)
    x, keys = tokens(), jax.random.split(jax.random.key(0), 2)
    _, intermediates = run(model, variables, x, x, keys, method="hidden")
    zeros = lambda y: np.isclose(np.asarray(y), 0).all(1)
    _, still = run(model, variables, x, x, method="hidden")
    assert not zeros(still["encoded"]).any() and zeros(intermediates["encoded"]).any()


# ---- initialisers, by the reference ----


def test_t5_initialisers():
    """Mesh-TensorFlow's attention.py (fold_scaling_into_initializer) and t5x's network.py."""
    model = t5("small", 512, layers=2)
    params = jax.jit(model.init)(jax.random.key(0), tokens(), tokens())["params"]
    layers, std = params["decoder"]["layers"], lambda x: float(x.std())
    wanted = {"query": (512 * 64) ** -0.5, "key": 512**-0.5, "value": 512**-0.5, "out": (6 * 64) ** -0.5}
    for kind in ("attention", "cross"):
        for name, value in wanted.items():
            assert std(layers[kind][name]["kernel"]) == pytest.approx(value, rel=0.03)
    assert std(layers["mlp"]["gate"]["kernel"]) == pytest.approx(512**-0.5, rel=0.03)
    assert std(layers["mlp"]["down"]["kernel"]) == pytest.approx(1024**-0.5, rel=0.03)
    assert std(params["embed"]["embedding"]) == pytest.approx(1.0, rel=0.03)
    assert std(params["logits"]["kernel"]) == pytest.approx(512**-0.5, rel=0.03)


def test_gpt2_initialisers():
    """Radford et al. 2019, section 2.3: 0.02, residual outputs divided by the root of their number."""
    params = jax.jit(gpt("small", 512, "gpt2", layers=8).init)(jax.random.key(0), tokens())["params"]
    layers, std = params["decoder"]["layers"], lambda x: float(x.std())
    assert std(layers["attention"]["query"]["kernel"]) == pytest.approx(0.02, rel=0.03)
    assert std(layers["attention"]["out"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.03)
    assert std(layers["mlp"]["down"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.03)
    assert std(params["embed"]["embedding"]) == pytest.approx(0.02, rel=0.03)


# Parameters of the released models, in millions: T5 with 32128 ids, GPT-2 with 50257.
@pytest.mark.parametrize(
    "model, millions",
    [
        (t5("small", 32128, "1.0"), 60.5),
        (t5("base", 32128, "1.0"), 222.9),
        (t5("large", 32128, "1.0"), 737.7),
        (t5("3b", 32128, "1.0"), 2851.6),
        (t5("11b", 32128, "1.0"), 11307.3),
        (t5("small", 32128), 77.0),
        (t5("base", 32128), 247.6),
        (t5("large", 32128), 783.2),
        (t5("xl", 32128), 2849.8),
        (t5("xxl", 32128), 11135.3),
        (gpt("124m", 50257, "gpt2"), 124.4),
        (gpt("355m", 50257, "gpt2"), 354.8),
        (gpt("774m", 50257, "gpt2"), 774.0),
        (gpt("1.5b", 50257, "gpt2"), 1557.6),
        (t5("small", 250112, "mt5"), 300.2),
        (gpt("2-7b", 32000, "llama"), 6738.4),
        (gpt("3.1-8b", 128256, "llama"), 8030.3),
        (gpt("3.2-1b", 128256, "llama"), 1235.8),
        (gpt("7b", 32000, "mistral"), 7241.7),
        (gpt("0.5b", 151936, "qwen2"), 494.0),
        (gpt("1.5b", 151936, "qwen2"), 1543.7),
        (gpt("7b", 152064, "qwen2"), 7615.6),
        (gpt("0.6b", 151936, "qwen3"), 596.0),
        (gpt("1.7b", 151936, "qwen3"), 1720.6),
        (gpt("4b", 151936, "qwen3"), 4022.5),
        (gpt("8b", 151936, "qwen3"), 8190.7),
        (bert("large", 50265, "roberta"), 355.4),
    ],
)
def test_named_sizes_have_the_released_parameter_counts(model, millions):
    one = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    args = (one, one) if hasattr(model, "decoder_layers") else (one,)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), *args)
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    "model, kind",
    [
        *((gpt("tiny", VOCABULARY, style), style) for style in ("gpt2", "llama", "mistral", "qwen2", "qwen3")),
        *((bert("tiny", VOCABULARY, style), style) for style in ("bert", "roberta", "modernbert")),
        (t5("tiny", VOCABULARY, "umt5"), "umt5"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_model_is_of_the_family_of_its_style(model, kind):
    """Which the transformers library's config.json says that it is written as."""
    assert config_of({"model": model}, hf.FAMILIES)[1]["model_type"] == kind


# ---- sharding and FLOPs ----


def shapes(family, **fields):
    model = FAMILIES[family](**fields)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs(family)))["params"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_has_a_rule(family):
    mesh = jax.make_mesh((2, 2, 2), partition.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    found = partition.shardings(shapes(family), PARTITION_RULES, mesh)
    for name, sharding in trees.named_leaves(found):
        matrix = re.search("kernel|embedding", name) and "relative_bias" not in name and "positions" not in name
        spec = [axis for axis in sharding.spec if axis is not None]
        assert not matrix or sorted(spec) == ["fsdp", "tensor"], (name, sharding.spec)
        assert not trees.is_stacked(name) or not len(sharding.spec) or sharding.spec[0] is None


def test_every_rule_matches_something():
    names = [name for family in FAMILIES for name, _ in trees.named_leaves(shapes(family))]
    for encoder in bert("tiny", VOCABULARY), bert("tiny", VOCABULARY, style="electra", embed_width=8):
        there = jax.eval_shape(encoder.init, jax.random.key(0), tokens())["params"]
        names += [name for name, _ in trees.named_leaves(there)]
    assert [rule for rule, _ in PARTITION_RULES if not any(re.search(rule, name) for name in names)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_what_xla_counts(family):
    """Unrolled, for XLA counts a scan's body once; wide layers, for it counts norms and softmax too."""
    wide = {"d_model": 128, "heads": 2, "head_dim": 64, "d_ff": 256, "scan": False, "max_length": 128}
    model = FAMILIES[family](**wide, **({"kv_heads": 1} if family == "grouped" else {}))
    source, target = jnp.ones((2, 128), jnp.int32), jnp.ones((2, 96), jnp.int32)
    args = (source, target) if family in PAIRS else (source,)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))
    count = jax.jit(model.apply).lower(variables, *args).compile().cost_analysis()["flops"]
    formula = model.flops(2, 128, 96) if family in PAIRS else model.flops(2, 128)
    assert 1.0 < count / formula < 1.05, count / formula


# ---- mistakes ----


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: t5("smal", 99), r"unknown T5 v1.1 size 'smal': did you mean 'small'\? choose from tiny, small"),
        (lambda: t5("xl", 99, "1.0"), "unknown T5 v1.0 size 'xl'"),
        (lambda: t5("small", 99, "1.2"), r"unknown T5 version '1.2': did you mean '1.1'\?"),
        (lambda: t5("small", 99, d_modle=3), r"unknown field of EncoderDecoder 'd_modle': did you mean 'd_model'\?"),
        (lambda: gpt("1.5g", 99), r"unknown GPT size '1.5g': did you mean '1.5b'\?"),
        (lambda: gpt("small", 99, "gpt3"), r"unknown GPT style 'gpt3': did you mean 'gpt2'\?"),
        (lambda: gpt("small", 99, heads=7), "7 heads do not divide d_model=768: choose a divisor as heads"),
        (lambda: gpt("7b", 99, "qwen3"), r"unknown qwen3 size '7b': .*choose from tiny, 0.6b"),
        (lambda: gpt("small", 0), "vocab_size=0: a model needs the number of its tokenizer's ids"),
        (lambda: made("gpt2")[0].init(jax.random.key(0), tokens(length=33)), "33 tokens, but max_length=32 learned"),
    ],
)
def test_errors_name_the_mistake(make, text):
    with pytest.raises(UserError, match=text):
        make()


def test_sizes_by_any_case_and_alias():
    assert t5("XL", 99) == t5("3b", 99) and gpt("124M", 99) == gpt("small", 99)
    assert set(GPT_SIZES) >= {"tiny", "1b"} and all("tiny" in sizes for sizes in T5_SIZES.values())
