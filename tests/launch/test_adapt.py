"""The place where an adaptation enters: one interceptor, and all that calls a module sees what it adds.

The adaptation here puts a gain beside every Dense kernel. At zero it changes nothing.
"""

import dataclasses
import functools
import math

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import load
from launch.run import loop, registry
from launch.run.experiment import bound
from launch.run.initial import make_state
from paradigm import partition, trees
from paradigm.adapt import Adaptation
from paradigm.layers import Dense
from paradigm.objective import EVALUATION
from t5like.models import gpt
from t5like.objectives import NextToken
from t5like.tokenizers import ByteTokenizer
from tests import contract

RUN = """
Experiment.objective = @NextToken()
Experiment.data = @TextData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 3
Experiment.batch_size = 8
Experiment.eval_batches = 2
Experiment.mesh = 'data:2,fsdp:2,tensor:2'
Experiment.freeze = (('/gain$', False), ('', True))
NextToken.model = @gpt()
NextToken.adapt = @Gains()
NextToken.length = 32
gpt.size = 'tiny'
gpt.style = 'gpt2'
gpt.layers = 2
AdamW.learning_rate = 0.3
TextData.source = '{source}'
"""


@dataclasses.dataclass(frozen=True)
class Gains(Adaptation):
    """y -> y * (1 + gain), a gain [*features] beside the kernel of every Dense."""

    own = ("gain",)
    freezes = False  # Experiment.freeze says what is
    partition_rules = ((r"/gain$", ()),)

    def interceptor(self, name):
        def call(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            if not isinstance(context.module, Dense) or context.method_name != "__call__":
                return y
            return y * (1 + context.module.param("gain", jax.nn.initializers.zeros, context.module.features))

        return call


GAINS = Gains()


def objective(scan=True, adapt=GAINS):
    model = gpt("tiny", None, style="gpt2", layers=2, d_model=16, heads=2, d_ff=32, max_length=8, scan=scan)
    return NextToken(model, 8, adapt=adapt).bind(ByteTokenizer().vocabulary)


def batch_of(step):
    rng = np.random.default_rng(step)
    spec = objective().batch_spec(8)
    batch = {name: rng.integers(3, 99, x.shape).astype(x.dtype) for name, x in spec.items()}
    rows = np.stack([np.zeros(8), np.arange(8)], 1).astype(np.uint32)
    ones = {
        name: np.ones(spec[name].shape, spec[name].dtype) for name in ("segments", "weights", "mask") if name in spec
    }
    return {**batch, **ones, "index": rows, **({"positions": ramp(spec)} if "positions" in spec else {})}


def ramp(spec):
    return np.broadcast_to(np.arange(8, dtype=np.int32), spec["positions"].shape)


@functools.cache
def initial(adapt):
    return jax.jit(objective(adapt=adapt).init)(jax.random.key(0))


def gains(params, value):
    """The same parameters, each gain drawn around a value."""
    draw = lambda name, x: value * np.random.default_rng(len(name)).normal(size=x.shape).astype(np.float32)
    return trees.named_map(lambda name, x: draw(name, x) if name.endswith("/gain") else x, params)


def loss(one, params):
    return float(jax.jit(lambda p, b: one.loss(p, {}, b, EVALUATION).value())(params, batch_of(0)))


def test_leaves_are_added_beside_the_others_which_begin_as_without():
    base, adapted = (dict(trees.named_leaves(initial(adapt))) for adapt in (None, GAINS))
    added = {name: x for name, x in adapted.items() if name not in base}
    assert {name.removesuffix("gain") for name in added} == {n[: -len("kernel")] for n in base if n.endswith("kernel")}
    assert added["model/decoder/layers/attention/query/gain"].shape == (2, 2, 8)  # stacked by the scan
    assert not any(np.any(x) for x in added.values())
    for name, x in base.items():
        assert np.array_equal(x, adapted[name]), name
    assert loss(objective(), initial(GAINS)) == loss(objective(adapt=None), initial(None))


def test_scan_and_mesh_see_them():
    params = gains(initial(GAINS), 3.0)
    scanned = loss(objective(), params)
    assert abs(scanned - loss(objective(adapt=None), initial(None))) > 1e-3
    np.testing.assert_allclose(loss(objective(scan=False), params), scanned, rtol=1e-6)
    contract.check_sharding(objective(), batch_of)


def test_a_run_trains_saves_evaluates_loads_and_decodes_with_them(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    gin.clear_config()  # which unlocks gin's registry
    registry.register(Gains)
    experiment = bound(registry.parse_text(RUN.format(source=tmp_path / "text.txt")))
    config = registry.operative_config()
    done = loop.train(experiment, tmp_path / "run", config=config)
    trained = {name: x for name, x in trees.named_leaves(done.state.params)}
    assert all(name.endswith("/gain") and np.any(x) for name, x in trained.items())
    assert {name.split("/", 1)[1] for name, _ in trees.named_leaves(done.state.opt_state)} == set(trained)
    count = sum(x.size for x in trained.values())
    assert f"parameters, {count:,} of them trained" in capsys.readouterr().out

    run = load(tmp_path / "run")
    contract.assert_trees_equal(jax.device_get(run.params), jax.device_get(done.state.all_params))
    without = jax.tree.map(jnp.asarray, gains(run.params, 0.0))
    say = lambda params: run.generate("The quick", max_new_tokens=12) if params is None else _generate(run, params)
    assert say(None) == _generate(run, run.params) != say(without)

    data = loop.Data(experiment, tmp_path / "run" / "data")
    value = lambda params: contract_loss(run.objective, params, data)
    assert value(run.params) == pytest.approx(done.metrics["valid/loss"], rel=1e-5)
    assert abs(value(without) - done.metrics["valid/loss"]) > 1e-3


def _generate(run, params):
    from t5like import decode

    return decode.generate(run.objective, {"params": params}, run.tokenizer, "The quick", max_new_tokens=12)


def contract_loss(one, params, data):
    """The mean over the validation batches by the loss itself."""
    total = weight = 0.0
    for batch in data.batches():
        (term,) = one.loss(params, {}, batch, EVALUATION).terms.values()
        total, weight = total + float(term.sum), weight + float(term.weight)
    return total / weight


def test_on_a_pod_the_optimizers_memory_is_in_proportion_to_what_is_trained():
    """Bytes that one of 16 chips keeps for a decoder of 8B, by LoRA and with all of it trained; nothing is computed."""

    def of(*params):
        e = bound(registry.parse(["runs/llama_8b_lora.gin"], params))
        state = jax.eval_shape(lambda: make_state(e))
        mesh = jax.sharding.AbstractMesh((1, 16, 1), partition.AXES)
        laid = partition.state_shardings(state, e.objective.all_partition_rules, mesh)
        pairs = zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(laid.opt_state), strict=True)
        kept = sum(math.prod(sharding.shard_shape(x.shape)) for x, sharding in pairs)
        return kept, sum(x.size for x in jax.tree.leaves(state.params))

    (lora, trained), (full, everything) = of(), of("Experiment.adapt = @Full()")
    assert 0.005 < trained / everything < 0.0055
    assert lora / full < 1.05 * trained / everything
