"""What is frozen: no bit of it moves, and nothing that is computed of the trained parameters sees it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradigm import partition, trees
from paradigm.errors import UserError
from paradigm.optim import AdamW
from paradigm.step import init_state, make_train_step
from tests import contract, miniatures

OPTIMIZER = AdamW(0.01, weight_decay=0.1)
FREEZE = (("encoder/in/", True),)
B = 8


def batch_of(objective, step=0):
    rows = np.arange(B) + step * B
    x = np.random.default_rng(step).normal(size=(B, miniatures.WIDTH)).astype(np.float32)
    batch = {"x": x, "index": np.stack([rows * 0, rows], 1).astype(np.uint32), "mask": np.ones(B, np.float32)}
    return {**batch, "signs": np.sign(x).astype(np.int32)} if "signs" in objective.batch_spec(B) else batch


def first(objective, freeze=FREEZE, **how):
    return jax.jit(lambda: init_state(objective, OPTIMIZER, 0, freeze=freeze, **how))()


def trained(objective, state, steps=3, **how):
    step = jax.jit(make_train_step(objective, OPTIMIZER, **how))
    for i in range(steps):
        state, metrics = step(state, batch_of(objective, i))
    return jax.device_get(state), jax.device_get(metrics)


def names(tree):
    return {name for name, _ in trees.named_leaves(tree)}


@pytest.mark.parametrize("kind", ["two_terms", "teacher_queue", "cached_pairs"])
def test_frozen_leaves_keep_every_bit_and_have_no_state(kind):
    objective = miniatures.ALL[kind]
    state = first(objective, ema=0.9)
    assert names(state.frozen) == {"encoder/in/kernel"} and names(state.params) == {"encoder/out/kernel"}
    assert names(state.extra["ema"]) == {"encoder/out/kernel"}
    assert {name.split("/", 1)[1] for name in names(state.opt_state)} == {"encoder/out/kernel"}
    after, _ = trained(objective, state, ema=0.9)
    contract.assert_trees_equal(after.frozen, jax.device_get(state.frozen))
    assert np.any(after.params["encoder"]["out"]["kernel"] != state.params["encoder"]["out"]["kernel"])
    averaged = objective.variables(after.all_params, after.extra, "ema")["params"]["encoder"]
    assert np.array_equal(averaged["in"]["kernel"], state.frozen["encoder"]["in"]["kernel"])
    assert np.array_equal(averaged["out"]["kernel"], after.extra["ema"]["encoder"]["out"]["kernel"])


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("kind", ["two_terms", "cached_pairs"])
def test_gradient_and_clip_are_those_of_what_is_trained(kind, microbatches):
    """The reference is the whole gradient, of which the frozen part is thrown away before anything is done with it."""
    objective, batch = miniatures.ALL[kind], batch_of(miniatures.ALL[kind])
    free = first(objective, freeze=())
    _, _, gradient = contract.gradients(objective, lambda step: batch, "main")
    gradient = {"encoder": {"out": gradient["encoder"]["out"]}}
    state = first(objective)
    contract.assert_trees_equal(state.all_params, free.params)
    norm = float(optax.tree.norm(gradient))
    step = make_train_step(objective, contract.UnitStep(), microbatches=microbatches, clip=norm / 2)
    state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.params))
    after, metrics = jax.device_get(jax.jit(step)(state, batch))
    np.testing.assert_allclose(metrics["grad_norm"][0], norm, rtol=1e-5)
    contract.assert_trees_close(after.opt_state, jax.tree.map(lambda g: g / 2, gradient), 1e-4)


def test_a_gradient_that_is_not_finite_in_what_is_frozen_stops_nothing():
    """sqrt has no finite slope at 0: the frozen leaf's would spoil the step, were it computed."""

    @dataclasses.dataclass(frozen=True)
    class Root(miniatures.TwoTerms):
        def loss(self, params, extra, batch, ctx):
            loss = super().loss(params, extra, batch, ctx)
            root = jnp.sqrt(jnp.sum(0.0 * params["encoder"]["in"]["kernel"]))
            term = loss.terms["energy"]
            return dataclasses.replace(loss, terms={**loss.terms, "energy": term.replace(sum=term.sum + root)})

    _, spoilt = trained(Root(), first(Root(), freeze=()), 1)
    _, metrics = trained(Root(), first(Root()), 1)
    assert spoilt["bad_step"][0] == 1 and metrics["bad_step"][0] == 0


def test_a_frozen_module_is_in_evaluation_mode_and_may_be_cut():
    @dataclasses.dataclass(frozen=True)
    class Seen(miniatures.CoupledStatistics):
        def loss(self, params, extra, batch, ctx):
            loss = super().loss(params, extra, batch, ctx)
            return dataclasses.replace(loss, metrics={f"{name} is frozen": (1.0, 1.0) for name in ctx.frozen})

        def init(self, key):
            return {**super().init(key), **miniatures.Miniature("spare").init(key)}

    whole = first(Seen(), freeze=(("^encoder/", True),))
    assert whole.frozen_modules == ("encoder",) and first(Seen()).frozen_modules == ()
    _, metrics = trained(Seen(), whole, 1, microbatches=2)
    assert "encoder is frozen" in metrics
    with pytest.raises(UserError, match="set microbatches=1"):
        trained(Seen(), first(Seen()), 1, microbatches=2)


def test_frozen_leaves_lie_where_their_rules_say():
    objective, mesh = miniatures.TwoTerms(), contract.mesh_of("mixed")
    state = jax.eval_shape(lambda: first(objective))
    layout = partition.state_shardings(state, objective.all_partition_rules, mesh)
    free = partition.state_shardings(jax.eval_shape(lambda: first(objective, ())), objective.partition_rules, mesh)
    assert layout.all_params == free.params and names(layout.frozen) == {"encoder/in/kernel"}


def test_a_table_that_says_nothing_or_all_is_refused():
    params = miniatures.TwoTerms().init(jax.random.key(0))
    assert trees.split(params, ()) == (params, {})
    rest, taken = trees.split(params, (("out", False), ("encoder/", True)))
    assert names(taken) == {"encoder/in/kernel"}
    contract.assert_trees_equal(trees.merge(rest, taken), params)
    with pytest.raises(UserError, match="freeze: 'encodr' matches no parameter .such as encoder/in/kernel"):
        trees.split(params, (("encodr", True),))
    with pytest.raises(UserError, match="freezes every parameter, and nothing is left to train"):
        trees.split(params, (("", True),))
    with pytest.raises(UserError, match=r"freeze: \('encoder', 'no'\) is not .* 'no' is not True or False"):
        trees.split(params, (("encoder", "no"),))
    with pytest.raises(UserError, match=r"freeze: 'encoder' is not \(regular expression, value\)"):
        trees.split(params, ("encoder",))
