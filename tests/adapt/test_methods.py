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
from paradigm.objective import EVALUATION
from paradigm.optim import AdamW
from paradigm.step import init_state, make_train_step
from tests import contract
from tests.adapt.models import EVERYWHERE, METHODS, OBJECTIVES, PAIRS, adapted, batch_of, first, refused

OPTIMIZER = AdamW(0.01, weight_decay=0.1)
BEGINS_ANEW = ("prompt", "vpt_deep", "prefix")
every_pair = pytest.mark.parametrize("method, name", PAIRS)


def names(tree):
    return {name for name, _ in trees.named_leaves(tree)}


def loss(objective, params, batch):
    _, extra = first(objective)
    return jax.jit(lambda p: objective.loss(p, extra, batch, EVALUATION).value())(params)


def disturbed(objective, seed=0):
    """First parameters, the adaptation's own leaves drawn around what they are."""
    params, _ = first(objective)
    draw = lambda name, x: x + np.float32(0.1) * np.random.default_rng(len(name) + seed).normal(size=x.shape)
    own = objective.adapt.is_own
    return trees.named_map(lambda name, x: np.float32(draw(name, x)) if own(name) else x, params)


@every_pair
def test_a_fresh_adaptation_is_the_base_and_training_moves_what_it_names_alone(method, name):
    base, objective = OBJECTIVES[name], adapted(method, name)
    params, extra = first(objective)
    plain = dict(trees.named_leaves(first(base)[0]))
    added = {n: x for n, x in trees.named_leaves(params) if n not in plain}
    assert all(map(objective.adapt.is_own, added)) and bool(added) == objective.adapt.adds
    batch = batch_of(name)(0)
    if method not in BEGINS_ANEW:
        contract.assert_trees_equal(plain, {n: x for n, x in trees.named_leaves(params) if n in plain})
        assert loss(objective, params, batch) == loss(base, first(base)[0], batch)

    state = jax.jit(lambda: init_state(objective, OPTIMIZER, 0, 0.9))()
    wanted = {n for n in plain if expected(method, n)} | set(added)
    assert names(state.params) == wanted == names(state.extra["ema"])
    assert names(state.frozen) == set(plain) - wanted
    assert {n.split("/", 1)[1] for n in names(state.opt_state)} == wanted
    step = jax.jit(make_train_step(objective, OPTIMIZER, clip=1.0, ema=0.9))
    after = state
    for i in range(2):
        after, metrics = step(after, batch_of(name)(i))
    assert np.isfinite(metrics["loss"][0])
    contract.assert_trees_equal(jax.device_get(after.frozen), jax.device_get(state.frozen))
    moved = {n for (n, a), b in zip(trees.named_leaves(after.params), jax.tree.leaves(state.params)) if np.any(a != b)}
    assert {n for n in wanted if n not in moved and not n.endswith("key/bias")} <= {
        n for n in plain if "norm" in n or "bias" in n
    }


def expected(method, name):
    """Whether the base's leaf of this name is trained."""
    head = name.split("/")[0] in ("classifier", "image_head", "text_head")
    return method == "full" or head or (method == "bitfit" and name.endswith("/bias"))
