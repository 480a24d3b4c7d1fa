"""The contract of objective and step, proven on five miniatures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from paradigm import optim, partition, rng
from paradigm.combine import Alternate, Stages, Sum
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.objective import Context, Loss, Objective, Term
from paradigm.schedule import FINAL, Linear
from paradigm.step import cut, init_state, make_eval_step, make_train_step, uncut
from tests import contract, miniatures

B = 16
OPTIMIZER = optim.AdamW(learning_rate=0.01)
everyone = pytest.mark.parametrize("name", list(miniatures.ALL))


def batches(objective, masked=0):
    """batch_of(step), the last `masked` rows of each batch being padding."""
    data = Dataset(miniatures.Numbers(), objective.preprocess, B, seed=3)

    def batch_of(step):
        batch = dict(data.batch(step))
        batch["mask"] = np.float32(np.arange(B) < B - masked)
        return batch

    return batch_of


@everyone
def test_resume_is_bit_exact(name):
    objective = miniatures.ALL[name]
    contract.check_resume(objective, OPTIMIZER, batches(objective), clip=1.0, ema=0.9)


@everyone
def test_microbatches_equal_the_whole(name):
    objective = miniatures.ALL[name]
    batch_of = batches(objective, masked=0 if name == "batch_statistics" else 3)
    contract.check_microbatches(objective, batch_of, parts=(2, 4))


@everyone
@contract.every_mesh
def test_sharded_equals_one_device(name, mesh):
    objective = miniatures.ALL[name]
    contract.check_sharding(objective, batches(objective), mesh)


@everyone
def test_sharded_microbatches_equal_one_device(name):
    objective = miniatures.ALL[name]
    contract.check_sharding(objective, batches(objective), microbatches=2)


@everyone
def test_compiles_from_shapes_alone(name):
    objective = miniatures.ALL[name]
    contract.check_abstract(objective, OPTIMIZER, batches(objective), B, ema=0.9)


@everyone
def test_weights_do_not_depend_on_parameters(name):
    objective = miniatures.ALL[name]
    contract.check_weights(objective, batches(objective))


def test_a_mean_of_microbatch_means_would_be_wrong():
    """The check above can fail: with uneven masks, averaging each part's own loss gives another number."""
    objective = miniatures.TwoTerms()
    batch = batches(objective, masked=5)(0)
    ctx = Context(jnp.int32(0))
    params = objective.init(jax.random.key(0))
    whole = objective.loss(params, {}, batch, ctx).value()
    parts = [objective.loss(params, {}, jax.tree.map(lambda x: x[i], cut(batch, 4)), ctx) for i in range(4)]
    assert abs(np.mean([p.value() for p in parts]) - whole) > 1e-3
    merged = sum(p.value(objective.loss(params, {}, batch, ctx).weights) for p in parts)
    np.testing.assert_allclose(merged, whole, rtol=1e-6)


def test_the_weights_cost_nothing():
    """Taking the whole batch's weights in advance adds no forward pass: the compiler drops all but the weights."""
    objective = miniatures.TwoTerms()
    state = jax.eval_shape(lambda: init_state(objective, OPTIMIZER, 0))
    flops = {}
    for n in (1, 2):
        step = jax.jit(make_train_step(objective, contract.UnitStep(), microbatches=n))
        state = jax.eval_shape(lambda: init_state(objective, contract.UnitStep(), 0))
        flops[n] = step.lower(state, objective.batch_spec(64)).compile().cost_analysis()["flops"]
    # The scan's body is counted once, so two parts show about half; another forward pass would add a third.
    assert flops[2] < 0.75 * flops[1]


class Layer(nn.Module):
    """One matrix, which tells that it is called."""

    tell: Callable

    @nn.compact
    def __call__(self, x):
        self.tell("called")
        return nn.Dense(4, name="dense")(x), {}


@dataclasses.dataclass(frozen=True)
class OneLayer(Objective):
    tell: Callable
    setting: Any = ()

    def modules(self):
        return {"model": (Layer(self.tell), jnp.ones((1, 3)))}


def test_first_parameters_are_traced_once_by_all_who_ask_for_them():
    calls = []
    make = lambda: init_state(OneLayer(calls.append), OPTIMIZER, 0)
    shapes, again, state = jax.eval_shape(make), jax.eval_shape(make), jax.jit(make)()
    assert len(calls) == 1
    assert shapes == again == jax.eval_shape(lambda: state)
    drawn = OneLayer(calls.append).init(rng.key(0, "params"))  # what nobody traces
    contract.assert_trees_close(state.params, drawn, 1e-6)
    other = jax.jit(lambda: init_state(OneLayer(calls.append), OPTIMIZER, 1))()
    assert np.abs(other.params["model"]["dense"]["kernel"] - drawn["model"]["dense"]["kernel"]).max() > 0.1
    calls.clear()
    jax.eval_shape(lambda: init_state(OneLayer(calls.append, [1]), OPTIMIZER, 0))  # a list has no hash
    assert len(calls) == 2


def test_cut_and_uncut_are_inverse():
    x = np.arange(24).reshape(12, 2)
    np.testing.assert_array_equal(uncut(cut(x, 3)), x)
    np.testing.assert_array_equal(cut(x, 3)[1], x[1::3])
    with pytest.raises(UserError, match="batch of 12 does not divide into 5 microbatches"):
        cut(x, 5)


def test_batchnorm_in_the_encoder_refuses_microbatches():
    whole = miniatures.CoupledStatistics()
    with pytest.raises(UserError, match="CoupledStatistics couples the examples of a batch.*set microbatches=1"):
        contract.run(whole, OPTIMIZER, batches(whole), 0, 1, microbatches=2)
    contract.check_resume(whole, OPTIMIZER, batches(whole))


def test_a_bad_step_changes_only_the_counters():
    objective = miniatures.TeacherQueue()
    batch_of = batches(objective)
    state, _ = contract.run(objective, OPTIMIZER, batch_of, 0, 1, ema=0.5)
    poisoned = {**batch_of(1), "x": np.full((B, miniatures.WIDTH), np.nan, np.float32)}
    after, rows = contract.run(objective, OPTIMIZER, lambda i: poisoned, 1, 2, state, ema=0.5)
    assert rows[0]["bad_step"] == (1.0, 1.0)
    assert (after.step, after.bad_steps) == (2, 1)
    contract.assert_trees_equal(state.replace(step=0, bad_steps=0), after.replace(step=0, bad_steps=0))
    healed, _ = contract.run(objective, OPTIMIZER, batch_of, 2, 3, after, ema=0.5)
    assert (healed.step, healed.bad_steps) == (3, 0)


@dataclasses.dataclass(frozen=True)
class HalfBad(miniatures.TwoTerms):
    """Its loss is a number and its gradient is none, or the other way round."""

    bad: str = "gradient"

    def loss(self, params, extra, batch, ctx):
        loss, nothing = super().loss(params, extra, batch, ctx), 0.0 * params["encoder"]["in"]["kernel"].sum()
        odd = jnp.sqrt(nothing) if self.bad == "gradient" else jax.lax.stop_gradient(jnp.inf + nothing)
        energy = loss.terms["energy"]
        return Loss({**loss.terms, "energy": energy.replace(sum=energy.sum + odd)}, loss.metrics)


@pytest.mark.parametrize("bad", ["gradient", "loss"])
def test_a_step_is_bad_where_its_loss_or_its_gradient_alone_is(bad):
    objective = HalfBad(bad=bad)
    before = jax.device_get(init_state(objective, OPTIMIZER, 0))
    after, [metrics] = contract.run(objective, OPTIMIZER, batches(objective), 0, 1)
    assert (np.isfinite(metrics["loss"][0]), np.isfinite(metrics["grad_norm"][0])) == (bad != "loss", bad == "loss")
    assert metrics["bad_step"] == (1.0, 1.0) and after.bad_steps == 1
    contract.assert_trees_equal(after.params, before.params)


def test_extra_is_updated_from_the_new_params_once_a_step():
    objective = miniatures.TeacherQueue()
    batch_of = batches(objective)
    before, _ = contract.run(objective, OPTIMIZER, batch_of, 0, 1)
    for n in (1, 4):
        after, _ = contract.run(objective, OPTIMIZER, batch_of, 1, 2, before, microbatches=n)
        expected = jax.tree.map(lambda t, p: 0.9 * t + np.float32(0.1) * p, before.extra["teacher"], after.params)
        contract.assert_trees_close(after.extra["teacher"], expected, 1e-6)
        assert after.extra["cursor"] == 0 and before.extra["cursor"] == B
        keys = miniatures.unit(objective.features(before.extra["teacher"], batch_of(1)["x"]))
        np.testing.assert_allclose(after.extra["queue"][B:], keys, atol=1e-6)  # in the batch's order
        np.testing.assert_array_equal(after.extra["queue"][:B], before.extra["queue"][:B])


def test_weight_average_follows_the_new_params():
    objective = miniatures.TwoTerms()
    decay = Linear(peak=1.0, final=0.5, total_steps=4)  # 0.75 at step 2
    before, _ = contract.run(objective, OPTIMIZER, batches(objective), 0, 2, ema=decay)
    after, _ = contract.run(objective, OPTIMIZER, batches(objective), 2, 3, before, ema=decay)
    contract.assert_trees_close(
        after.extra["ema"], jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, before.extra["ema"], after.params), 1e-6
    )
    variables = objective.variables(after.params, after.extra, "ema")
    contract.assert_trees_equal(variables["params"], after.extra["ema"])


def test_clipping_bounds_the_global_norm():
    objective = miniatures.TwoTerms()
    batch = batches(objective)(0)
    start = init_state(objective, contract.UnitStep(), 0)
    free, metrics = make_train_step(objective, contract.UnitStep())(start, batch)
    clipped, same = make_train_step(objective, contract.UnitStep(), clip=0.01)(start, batch)
    norm = float(metrics["grad_norm"][0])
    assert norm > 0.1 and norm == float(same["grad_norm"][0])
    contract.assert_trees_close(clipped.opt_state, jax.tree.map(lambda g: g * 0.01 / norm, free.opt_state), 1e-4)
    below, _ = make_train_step(objective, contract.UnitStep(), clip=2 * norm)(start, batch)
    contract.assert_trees_equal(below.opt_state, free.opt_state)  # a gradient within the bound is left as it is


def test_the_learning_rate_reads_the_step_and_not_a_count():
    objective = miniatures.TwoTerms()

    def after(learning_rate):  # one step from step 50, with an optimizer that has made none
        optimizer = optim.AdamW(learning_rate)
        start = init_state(objective, optimizer, 0).replace(step=jnp.int32(50))
        return make_train_step(objective, optimizer)(start, batches(objective)(50))

    state, metrics = after(Linear(peak=1.0, final=0.0, total_steps=100))
    np.testing.assert_allclose(metrics["learning_rate"][0], 0.5)
    contract.assert_trees_close(state.params, after(0.5)[0].params, 1e-6)
    with pytest.raises(AssertionError):
        contract.assert_trees_close(state.params, after(1.0)[0].params, 1e-6)


def test_randomness_follows_the_example():
    """A row draws the same dropout wherever it stands in the batch; another index draws another."""
    ctx = Context(jnp.int32(4), seed=1)
    index = jnp.array([[0, 5], [0, 6], [1, 5]], jnp.uint32)
    bits = jax.vmap(lambda k: jax.random.bits(k, (4,)))(ctx.keys("dropout", index))
    again = jax.vmap(lambda k: jax.random.bits(k, (4,)))(ctx.keys("dropout", index[::-1]))
    np.testing.assert_array_equal(bits, again[::-1])
    assert len({tuple(map(int, row)) for row in bits}) == 3
    other = jax.vmap(lambda k: jax.random.bits(k, (4,)))(ctx.keys("crop", index))
    assert not np.any(np.asarray(bits) == np.asarray(other))
    assert rng.key(0, "a", 1) != rng.key(0, "a", 2)


def test_sum_is_the_sum_of_its_parts():
    parts = (("a", miniatures.TwoTerms()), ("b", miniatures.CachedPairs()), ("t", miniatures.TeacherQueue()))
    total = Sum(parts=parts, coefficients=(2.0, 0.5, 1.0))
    batch_of = batches(total)
    params = total.init(jax.random.key(0))
    assert list(params) == ["encoder"]  # one path, one shared parameter
    extra = total.init_extra(params, jax.random.key(1))
    batch = jax.tree.map(jnp.asarray, batch_of(0))
    ctx = Context(jnp.int32(0))
    whole = total.loss(params, extra, batch, ctx)
    own = lambda n: {
        **{k[2:]: v for k, v in batch.items() if k.startswith(n + "/")},
        **{k: batch[k] for k in ("index", "mask")},
    }
    each = [part.loss(params, extra[n], own(n), ctx).value() for n, part in parts]
    np.testing.assert_allclose(whole.value(), 2.0 * each[0] + 0.5 * each[1] + each[2], rtol=1e-6)
    contract.check_microbatches(total, batch_of)
    contract.check_resume(total, OPTIMIZER, batch_of)
    contract.check_sharding(total, batch_of)


def test_the_parts_of_a_sum_draw_apart():
    """What one part draws does not change with the others, and is not what they draw."""
    parts = tuple((name, miniatures.TwoTerms()) for name in "abc")
    batch = batches(Sum(parts=parts))(0)
    drawn = [batch[f"{name}/x"] for name in "abc"]
    assert len({x.tobytes() for x in drawn}) == 3
    turned = batches(Sum(parts=parts[:0:-1]))(0)
    for name in "bc":
        np.testing.assert_array_equal(batch[f"{name}/x"], turned[f"{name}/x"])


def test_what_parts_are_given_and_may_lack_is_the_wholes():
    """Experiment.freeze is asked for what is given, and Experiment.init need not have a new head."""

    class Tuned(miniatures.TwoTerms):
        given, new_modules = ("tokenizer",), ("classifier",)

    for whole in (Sum((("a", miniatures.Signs()), ("b", Tuned()))), Alternate((("b", Tuned()),), pattern=("b",))):
        assert whole.given == ("tokenizer",) and whole.new_modules == ("classifier",)


def test_stages_change_the_phase_at_their_boundary():
    stages = Stages(parts=(("first", miniatures.TwoTerms()), ("second", miniatures.Signs())), boundaries=(3,))
    assert [stages.phase(i) for i in range(5)] == ["first"] * 3 + ["second"] * 2
    assert stages.phases() == {"first": 0, "second": 3}
    contract.check_resume(stages, OPTIMIZER, batches(stages))
    contract.check_abstract(stages, OPTIMIZER, batches(stages), B)


def test_combinator_errors():
    one = (("a", miniatures.TwoTerms()), ("b", miniatures.Signs()))
    with pytest.raises(UserError, match=r"Alternate.pattern \('a',\) must name each of \['a', 'b'\]"):
        Alternate(parts=one, pattern=("a",))
    for boundaries in ((5, 7), (0,)):  # too many; and a first part of no step
        with pytest.raises(UserError, match="Stages.boundaries .* must be 1 rising steps for 2 parts"):
            Stages(parts=one, boundaries=boundaries)
    with pytest.raises(UserError, match="Sum.coefficients has 1 entries for 2 parts"):
        Sum(parts=one, coefficients=(1.0,))
    with pytest.raises(UserError, match="distinct names"):
        Sum(parts=(one[0], one[0]))
    for parts in ((one[0][1], one[1]), (one[0], ("b", 3))):
        with pytest.raises(UserError, match=r"Sum.parts must be \(name, objective\) pairs"):
            Sum(parts=parts)
    with pytest.raises(UserError, match="Sum.coefficients=.*: 'x' is neither a number nor a schedule"):
        Sum(parts=one, coefficients=(1.0, "x"))
    turns = Alternate(parts=one, pattern=("a", "b"))
    with pytest.raises(UserError, match="Sum: its part 'x' is Alternate, which has phases of its own"):
        Sum(parts=(("x", turns), ("y", miniatures.TwoTerms())))
    clash = Sum(parts=(("a", miniatures.TwoTerms()), ("b", Wide())))
    with pytest.raises(
        UserError, match=r"part 'b' has encoder/in/kernel of shape \(7, 16\), another part has it as \(8, 16\)"
    ):
        clash.init(jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Miswritten(miniatures.TwoTerms):
    """What its loss gives in place of a Loss of two terms."""

    gives: Any = None

    def loss(self, *given):
        return self.gives(super().loss(*given))


ENERGY = lambda loss: loss.terms["energy"]


@pytest.mark.parametrize(
    "gives, message",
    [
        (lambda loss: loss.value(), "Miswritten.loss gives a .*Tracer: return a Loss"),
        (lambda loss: (ENERGY(loss).sum, ENERGY(loss).weight), "Miswritten.loss gives a tuple: return a Loss"),
        (lambda loss: Loss({"x": (1.0, 2.0)}), r"its term 'x' is a tuple: write Term\(sum, weight\)"),
        (lambda loss: loss.replace(metrics={"x": 1.0}), r"its metric 'x' is no \(sum, weight\) of two scalars"),
        (
            lambda loss: Loss({"x": Term(ENERGY(loss).sum[None], 1.0)}),
            r"the sum of 'x' has the shape \[1\] and must be",
        ),
        (
            lambda loss: loss.replace(metrics={"x": (1.0, jnp.ones((8, 2)))}),
            r"the weight of 'x' has the shape \[8, 2\] and must be a scalar: add up over the rows",
        ),
        (lambda loss: Loss(), "Miswritten.loss has no term: there is nothing to minimise"),
    ],
)
def test_what_is_no_loss_is_told(gives, message):
    alone = Miswritten(gives=gives)
    wholes = [alone] if "no term" in message else [alone, Sum(parts=(("a", miniatures.TwoTerms()), ("b", alone)))]
    for objective in [*wholes, *(Alternate(parts=w.parts, pattern=("b", "a")) for w in wholes[1:])]:
        phase = objective.phase(0)
        state = jax.eval_shape(lambda: init_state(objective, OPTIMIZER, 0))
        step = make_train_step(objective, OPTIMIZER, phase=phase)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(step, state, objective.batch_spec(8, phase))


def test_what_are_no_modules_is_told():
    lone = OneLayer(print)
    given = {"name": lambda self: {"model": lone.modules()["model"][0]}, "list": lambda self: [1]}
    for modules in given.values():
        with pytest.raises(UserError, match=r"Wrong.modules must give \{name: \(Flax module, an example of its input"):
            type("Wrong", (OneLayer,), {"modules": modules})(print).init(jax.random.key(0))
    with pytest.raises(UserError, match="OneLayer applies 'modle', and its modules are model"):
        lone.apply("modle", {"params": {}}, jnp.ones((1, 8)))
    with pytest.raises(UserError, match="Wrong: a module and a scalar are both called 'model': rename one"):
        type("Wrong", (OneLayer,), {"scalars": {"model": 1.0}})(print).init(jax.random.key(0))


class Wide(miniatures.TwoTerms):
    def init(self, key):
        return {"encoder": {"in": {"kernel": jnp.zeros((7, 16))}}}


def test_losses_join_and_name_their_clashes():
    loss = Loss({"a": Term(jnp.float32(6.0), jnp.float32(2.0), 0.5)})
    assert float(loss.value()) == 1.5
    assert float(loss.prefixed("x", 2.0).value()) == 3.0
    assert list(loss.prefixed("x").unprefixed("x").terms) == ["a"]
    with pytest.raises(ValueError, match=r"two losses use the names \['a'\]"):
        loss.join(loss)
    empty = Loss({"a": Term(jnp.float32(0.0), jnp.float32(0.0))})
    assert float(empty.value()) == 0.0 and np.isfinite(
        jax.grad(lambda s: Loss({"a": Term(s, jnp.float32(0))}).value())(1.0)
    )


def test_evaluation_draws_nothing_and_reports_every_term():
    objective = miniatures.TwoTerms()
    state = init_state(objective, OPTIMIZER, 0)
    evaluate = make_eval_step(objective)
    metrics = evaluate(state.params, state.extra, batches(objective, masked=4)(0))
    assert set(metrics) == {"loss/energy", "loss/recall", "positive"}
    assert metrics["loss/energy"][1] == 12
    batch, late = batches(objective, masked=4)(0), Context(jnp.int32(FINAL), train=False)
    means = [metrics[n][0] / metrics[n][1] for n in ("loss/energy", "loss/recall")]
    np.testing.assert_allclose(sum(means), objective.loss(state.params, {}, batch, late).value(), rtol=1e-6)


def test_throughput_is_counted_in_the_unit_of_the_parts():
    turns = miniatures.alternating()
    assert turns.throughput(turns.batch_spec(B)) == ("examples", B)
    assert turns.flops(turns.batch_spec(B, "signs")) == turns.parts[1][1].flops(miniatures.Signs().batch_spec(B))


@pytest.mark.parametrize("name", ["two_terms", "teacher_queue"])
def test_rules_cover_every_matrix(name):
    objective = miniatures.ALL[name]
    state = jax.eval_shape(lambda: init_state(objective, OPTIMIZER, 0, 0.9))
    layout = partition.state_shardings(state, objective.partition_rules, contract.mesh_of("mixed"))
    specs = {tuple(s.spec) for s in jax.tree.leaves(layout.opt_state) if len(s.spec)}
    assert specs == {("fsdp", "tensor")}  # moments lie where their parameters lie
    if name == "teacher_queue":
        assert tuple(layout.extra["queue"].spec) == (("data", "fsdp"), None)
