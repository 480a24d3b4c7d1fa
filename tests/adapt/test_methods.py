"""Each method on each architecture that carries it: what begins as the base, what moves, what a state holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from paradigm.adapt import IA3, BottleneckAdapter, Full, LinearProbe, LoRA, PromptTuning
from paradigm.adapt.lora import added
from paradigm.errors import UserError
from paradigm.objective import EVALUATION, Context
from paradigm.optim import AdamW
from paradigm.step import init_state, make_train_step
from t5like.models import bert
from t5like.objectives import MaskedLM
from tests import contract
from tests.adapt.models import EVERYWHERE, LENGTH, METHODS, OBJECTIVES, PAIRS, SIZE, adapted, batch_of, first

OPTIMIZER = AdamW(0.01, weight_decay=0.1)
BEGINS_ANEW = ("prompt", "vpt_deep", "prefix")
# What an adaptation adds is exactly nothing, and a compiler may yet sum the rest in another order: it does for these.
ROUNDED = (("dora", "clip"),)
ONE_EACH = [("full", "vit"), ("probe", "resnet"), ("bitfit", "vit"), ("lora", "gpt2"), ("dora", "vit"),
            ("houlsby", "t5"), ("pfeiffer", "bert"), ("parallel", "vit"), ("prompt", "llama"), ("vpt_deep", "vit"),
            ("prefix", "t5"), ("ia3", "clip")]  # fmt: skip
every_pair = pytest.mark.parametrize(
    "method, name", [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in ONE_EACH)) for pair in PAIRS]
)
ON_A_MESH = [("lora", "gpt2"), ("houlsby", "t5"), ("prompt", "llama")]


def names(tree):
    return {name for name, _ in trees.named_leaves(tree)}


def loss(objective, params, batch):
    _, extra = first(objective)
    return jax.jit(lambda p: objective.loss(p, extra, batch, EVALUATION).value())(params)


def disturbed(objective, seed=0, by=0.1):
    """First parameters, the adaptation's own leaves drawn around what they are."""
    params, _ = first(objective)
    draw = lambda name, x: x + np.float32(by) * np.random.default_rng(len(name) + seed).normal(size=x.shape)
    own = objective.adapt.is_own
    return trees.named_map(lambda name, x: np.float32(draw(name, x)) if own(name) else x, params)


@every_pair
def test_a_fresh_adaptation_is_the_base(method, name):
    """Bit for bit, soft tokens aside, which have to change it."""
    base, objective = OBJECTIVES[name], adapted(method, name)
    params, _ = first(objective)
    plain = dict(trees.named_leaves(first(base)[0]))
    more = {n for n in names(params) if n not in plain}
    assert all(map(objective.adapt.is_own, more)) and bool(more) == objective.adapt.adds
    contract.assert_trees_equal(plain, {n: x for n, x in trees.named_leaves(params) if n in plain})
    batch = batch_of(name)(0)
    found, wanted = loss(objective, params, batch), loss(base, first(base)[0], batch)
    assert np.isfinite(found) and (found == wanted) == (method not in BEGINS_ANEW and (method, name) not in ROUNDED)
    if (method, name) in ROUNDED:
        np.testing.assert_allclose(found, wanted, rtol=2e-7)
    if more:
        assert loss(objective, disturbed(objective), batch) != found


@pytest.mark.parametrize("method, name", ONE_EACH)
def test_what_it_names_is_trained_and_the_rest_keeps_every_bit(method, name):
    objective = adapted(method, name)
    plain = names(first(OBJECTIVES[name])[0])
    state = jax.jit(lambda: init_state(objective, OPTIMIZER, 0, 0.9))()
    wanted = {n for n in plain if trained(method, n)} | (names(first(objective)[0]) - plain)
    assert names(state.params) == wanted == names(state.extra["ema"])
    assert names(state.frozen) == plain - wanted
    assert {n.split("/", 1)[1] for n in names(state.opt_state)} == wanted
    step, after = jax.jit(make_train_step(objective, OPTIMIZER, clip=1.0, ema=0.9)), state
    for i in range(2):
        after, metrics = step(after, batch_of(name)(i))
    assert np.isfinite(metrics["loss"][0])
    contract.assert_trees_equal(jax.device_get(after.frozen), jax.device_get(state.frozen))
    before = dict(trees.named_leaves(state.params))
    still = {n for n, x in trees.named_leaves(after.params) if not np.any(x != before[n])}
    assert not {n for n in still if objective.adapt.is_own(n) or n.endswith("kernel")}


def trained(method, name):
    """Whether the base's leaf of this name is."""
    head = name.split("/")[0] in ("classifier", "image_head", "text_head")
    return method == "full" or head or (method == "bitfit" and name.endswith("/bias"))


@pytest.mark.parametrize(
    "method, name", [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in ON_A_MESH)) for pair in ONE_EACH]
)
def test_sharded_equals_one_device(method, name):
    contract.check_sharding(adapted(method, name), batch_of(name))


OTHERS = [("houlsby", "t5"), ("prompt", "llama"), ("ia3", "gpt2")]  # whose state is as that of the one with dropout


@pytest.mark.parametrize("method, name", [("dora", "vit"), *(pytest.param(*p, marks=pytest.mark.slow) for p in OTHERS)])
def test_resume_is_bit_exact_and_microbatches_equal_the_whole(method, name):
    objective = adapted(method, name)
    contract.check_resume(objective, contract.UnitStep(), batch_of(name))
    contract.check_microbatches(objective, batch_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "houlsby", "ia3"])
def test_rows_cut_along_their_length_equal_one_device(method):
    contract.check_sharding(adapted(method, "gpt2"), batch_of("gpt2"), "context, mixed")


def test_compiles_from_shapes_alone():
    contract.check_abstract(adapted("lora", "gpt2"), contract.UnitStep(), batch_of("gpt2"), 8)


@pytest.mark.parametrize("method", ["everywhere", "dora", "ia3"])
def test_merged_is_adapted_and_unmerged_the_base(method):
    for name in ("gpt2", "t5"):
        adapt = EVERYWHERE if method == "everywhere" else METHODS[method]
        if name == "gpt2" and method == "everywhere":  # its output is the embedding, which stays as it is
            adapt = dataclasses.replace(adapt, targets=("/kernel$",))
        objective, batch = adapted(adapt, name), batch_of(name)(0)
        # A DoRA's change has to be smaller than the column it changes, or there are two that it may have been.
        params = disturbed(objective, by=0.002 if method == "dora" else 0.1)
        merged = adapt.merge(params)
        assert names(merged) == names(first(OBJECTIVES[name])[0])
        np.testing.assert_allclose(loss(OBJECTIVES[name], merged, batch), loss(objective, params, batch), rtol=1e-5)
        back = adapt.unmerge(merged, adapt.split(params)[1])
        contract.assert_trees_close(back, params, 1e-5)
        assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (merged, adapt.split(params)[0])))) > 1e-3


def test_loras_add_up():
    one, two = LoRA(rank=2), LoRA(rank=3, alpha=4.0, rank_stabilized=True)
    base = first(OBJECTIVES["gpt2"])[0]
    leaves = [adapt.split(disturbed(adapted(adapt, "gpt2"), seed))[1] for seed, adapt in enumerate((one, two))]
    adapt, own = added([(one, leaves[0], 0.7), (two, leaves[1], -0.4)])
    found = adapt.merge(trees.merge(base, own))
    changes = [jax.tree.map(np.subtract, a.merge(trees.merge(base, x)), base) for a, x in zip((one, two), leaves)]
    wanted = jax.tree.map(lambda x, a, b: x + 0.7 * a - 0.4 * b, base, *changes)
    contract.assert_trees_close(found, wanted, 1e-6)
    together = loss(adapted(adapt, "gpt2"), trees.merge(base, own), batch_of("gpt2")(0))
    np.testing.assert_allclose(together, loss(OBJECTIVES["gpt2"], found, batch_of("gpt2")(0)), rtol=1e-5)
    with pytest.raises(UserError, match="the same kernels and no dora"):
        added([(one, leaves[0], 1.0), (LoRA(dora=True), leaves[0], 1.0)])


def test_dropout_is_drawn_in_training_alone_and_where_the_model_itself_draws_nothing():
    objective, batch = adapted(METHODS["dora"], "vit"), batch_of("vit")(0)
    params, extra = disturbed(objective), first(objective)[1]
    contexts = [Context(jnp.int32(0), seed, train) for seed, train in ((0, True), (0, False), (1, False))]
    values = jax.jit(lambda p: [objective.loss(p, extra, batch, ctx).value() for ctx in contexts])(params)
    still = adapted(dataclasses.replace(METHODS["dora"], dropout=0.0), "vit")
    without = jax.jit(lambda p: still.loss(p, extra, batch, contexts[0]).value())(params)
    assert abs(values[0] - without) > 2e-5 and values[1] == values[2]


REFUSED = {
    "resnet": {
        LoRA(): r"LoRA adapts the kernels of paradigm.layers' Dense and Embed \(no convolution\), and Classify "
        "has none in encoder",
        BottleneckAdapter(): "BottleneckAdapter stands in a transformer's layers, and Classify has none in encoder",
        PromptTuning(): "PromptTuning puts soft tokens before a transformer's, and Classify has none in encoder",
        IA3(): "IA3 scales the outputs and inputs of paradigm.layers' Dense, and Classify has none in encoder",
    },
    "gpt2": {
        LoRA(targets=("atention/querry/kernel",)): "LoRA.targets: 'atention/querry/kernel' matches no parameter; the "
        "nearest are model/decoder/layers/attention/query/kernel",
        LoRA(ranks=(("cross/", 2),)): "LoRA.ranks: 'cross/' matches no parameter",
        LoRA(rank=17): "LoRA of rank 17: model/decoder/layers/attention/query is 16 x 16, of rank 16 at most",
        LoRA(targets=("embed/",), dora=True): "LoRA.dora: model/embed is an embedding",
        IA3(inputs=("mlp/dwn/",)): "IA3.inputs: 'mlp/dwn/' matches no parameter; the nearest are .*mlp/down/kernel",
        LoRA(train=("norms/scale",)): "LoRA.train: 'norms/scale' matches no parameter",
        LinearProbe(): "LinearProbe trains heads alone, and NextToken has none beside model",
        PromptTuning(length=17): "PromptTuning.length=17 and 8 tokens do not fit into the model's 24 learned positions",
        PromptTuning(length=2, text="what it is"): "PromptTuning.text has not been read: a run's data do",
        PromptTuning(length=2, tokens=(5, 400)): "PromptTuning.tokens: the model has ids from 0 to 383",
    },
    "llama": {
        METHODS["bitfit"]: "BitFit trains biases, and PrefixLM has none in model but the output's: choose another "
        r"method, or give the model bias=True \(bert.bias, gpt.bias, t5.bias\) and, .* --init_partly_from for",
        METHODS["vpt_deep"]: "PromptTuning.place='layers' is for encoders whose layers know no positions",
    },
    "vit": {PromptTuning(start="vocabulary"): "PromptTuning.start='vocabulary' and tokens are for text"},
}


@pytest.mark.parametrize("name, adapt", [(name, adapt) for name, table in REFUSED.items() for adapt in table])
def test_what_does_not_fit_is_refused(name, adapt):
    with pytest.raises(UserError, match=REFUSED[name][adapt]):
        jax.eval_shape(OBJECTIVES[name].adapted(adapt).init, jax.random.key(0))


@pytest.mark.parametrize(
    "adapt", [LoRA(), BottleneckAdapter(), METHODS["bitfit"]], ids=lambda adapt: type(adapt).__name__
)
def test_an_adaptation_says_what_a_body_is_called(adapt):
    with pytest.raises(UserError, match="adapts modules called model, encoder, text, and Mine has network: give what"):
        adapt.check("Mine", {"network": {"dense": {"bias": jnp.zeros(2)}}}, ("network",))


def test_bitfit_wants_biases_in_the_layers_and_those_of_zero_change_nothing():
    """An encoder whose output alone has a bias; the same with biases that its parameters lack."""
    how = {"style": "modern", "norm": "rms", **SIZE}
    bare, biased = (
        MaskedLM(bert("tiny", bias=bias, **how), LENGTH).bind(OBJECTIVES["bert"].known) for bias in (False, True)
    )
    assert "model/head/bias" in names(first(bare)[0])
    with pytest.raises(UserError, match="BitFit trains biases, and MaskedLM has none in model but the output's"):
        jax.eval_shape(bare.adapted(METHODS["bitfit"]).init, jax.random.key(0))
    objective = biased.adapted(METHODS["bitfit"])
    params = trees.merge_partial(first(objective)[0], first(bare)[0])[0]
    assert names(first(objective)[0]) - names(first(bare)[0]) and loss(objective, params, batch_of("bert")(0)) == loss(
        bare, first(bare)[0], batch_of("bert")(0)
    )


@pytest.mark.parametrize("make, message", [
    (lambda: LoRA(rank=0), "LoRA.rank=0.* a rank is at least 1"),
    (lambda: LoRA(dropout=1.0), "LoRA.dropout=1.0 must lie from 0 to below 1"),
    (lambda: LoRA(targets=("(",)), "LoRA.targets: '.' is no regular expression: missing"),
    (lambda: LoRA(ranks=(("query", "3"),)), "LoRA.ranks: .* is not .regular expression, a whole number"),
    (lambda: LoRA(alphas=(("query", 0.0),)), "LoRA.alpha=16.0, alphas=.* what is added is times alpha, above 0"),
    (lambda: BottleneckAdapter(where="("), "BottleneckAdapter.where: '.' is no regular expression"),
    (lambda: PromptTuning(where="("), "PromptTuning.where: '.' is no regular expression"),
    (lambda: BottleneckAdapter(style="hulsby"), "BottleneckAdapter.style 'hulsby': did you mean 'houlsby'"),
    (lambda: BottleneckAdapter(width=0), "BottleneckAdapter.width=0"),
    (lambda: PromptTuning(length=0), "PromptTuning.length=0"),
    (lambda: PromptTuning(place="inputs"), "PromptTuning.place 'inputs': did you mean 'input'"),
    (lambda: PromptTuning(place="attention", tokens=(1,)), "tokens begin as embeddings at the input"),
    (lambda: PromptTuning(text="a", tokens=(1,)), "PromptTuning.text and PromptTuning.tokens are two ways to say one"),
    (lambda: PromptTuning(text=" ").worded(str.split), "PromptTuning.text=' ' has no tokens: write what the task is"),
])  # fmt: skip
def test_settings_that_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name, one, other, message", [
    ("a/query/lora_b", LoRA(rank=8), LoRA(rank=8, rank_stabilized=True), r"scale=2.0, .* LoRA has scale=5.656"),
    ("a/query/lora_a", LoRA(), LoRA(dora=True), "dora=False, .* has dora=True"),
    ("a/query/ia3", IA3(inputs=("query",)), IA3(outputs=("query",)), "place='inputs', .* has place='outputs'"),
    ("adapter/up/kernel", BottleneckAdapter(), BottleneckAdapter(style="mlp"), "style='houlsby'"),
    ("adapter/up/bias", BottleneckAdapter(scale=2.0), BottleneckAdapter(), "scale=2.0"),
    ("a/soft", PromptTuning(tokens=(1, 2)), PromptTuning(tokens=(2, 1)), r"tokens=\(1, 2\)"),
    ("a/soft", PromptTuning(), PromptTuning(start="vocabulary"), "start='random'"),
])  # fmt: skip
def test_leaves_of_one_shape_that_do_something_else(name, one, other, message):
    one, other = (dataclasses.replace(x, targets=("query",)) if isinstance(x, LoRA) else x for x in (one, other))
    one.check_same(one, [(name, name)], "there")
    with pytest.raises(UserError, match=f"there has {name} with {message}"):
        other.check_same(one, [(name, name)], "there")


def test_one_adaptation_for_all_parts_of_a_combination():
    from paradigm.combine import Sum

    parts = (("one", OBJECTIVES["gpt2"]), ("two", OBJECTIVES["gpt2"]))
    with pytest.raises(UserError, match="they have one adaptation: set Experiment.adapt"):
        Sum((parts[0], ("two", adapted("lora", "gpt2"))))
    both = Sum(parts).adapted(METHODS["lora"])
    state = jax.eval_shape(lambda: init_state(both, OPTIMIZER, 0))
    assert {name.rsplit("/", 1)[1] for name in names(state.params)} == {"lora_a", "lora_b"}


def test_redrawn_layers():
    drawn, given = np.zeros((3, 2)), np.ones((3, 2))
    adapt = Full(redraw_layers=2)
    np.testing.assert_array_equal(adapt.begin("model/encoder/layers/mlp/up/kernel", drawn, given)[:, 0], [1, 0, 0])
    np.testing.assert_array_equal(adapt.begin("model/embed/embedding", drawn, given), given)
    with pytest.raises(UserError, match="Full.redraw_layers=2: .* has 1 layers"):
        adapt.begin("model/encoder/layers/mlp/up/kernel", drawn[:1], given[:1])
