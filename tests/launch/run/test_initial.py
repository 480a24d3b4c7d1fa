"""First states: a run's own checkpoint, what other runs give, running statistics, what is frozen."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import initial, loop
from launch.run.experiment import Init
from launch.storage import manifest
from launch.storage.checkpoint import Checkpoints
from paradigm.combine import Sum
from paradigm.errors import UserError
from paradigm.optim import AdamW
from tests import contract, miniatures
from tests.launch import small


def test_own_checkpoint_before_init_from_before_scratch(tmp_path, capsys):
    donor = small.experiment(total_steps=4, save_every=2, eval_every=100)
    given = loop.train(donor, tmp_path / "donor").state.params
    new = small.experiment(total_steps=1, seed=7, ema=0.9, optimizer=Still(), eval_every=100)

    scratch = loop.train(new, tmp_path / "scratch").state
    assert "started from scratch" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        contract.assert_trees_equal(scratch.params, given)

    for where in ("donor", "donor/checkpoints/4"):
        state = loop.train(new, tmp_path / f"from {Path(where).name}", init_from=tmp_path / where).state
        assert f"started from the parameters of {tmp_path / 'donor'} at step 4" in capsys.readouterr().out
        contract.assert_trees_equal(state.params, given)
        contract.assert_trees_close(state.extra["ema"], given, 1e-6)
    older = loop.train(new, tmp_path / "older", init_from=tmp_path / "donor" / "checkpoints" / "2").state
    with pytest.raises(AssertionError):
        contract.assert_trees_equal(older.params, given)

    loop.train(dataclasses.replace(new, total_steps=2), tmp_path / "scratch", init_from=tmp_path / "donor")
    assert f"resumed from step 1 ({tmp_path / 'donor'} is for new runs)" in capsys.readouterr().out


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_what_is_given_is_narrowed_where_it_is_stored_alone(stored, tmp_path):
    """Moments and averages begin from float32 parameters, whatever these are stored in."""
    donor = small.experiment(total_steps=2, save_every=2, eval_every=100, param_dtype=stored)
    loop.train(donor, tmp_path / "donor")
    new = small.experiment(total_steps=1, ema=0.5, param_dtype="bfloat16", optimizer=AdamW(1e-3), eval_every=100)
    state = loop.train(new, tmp_path / "new", init_from=tmp_path / "donor").state
    assert jnp.dtype("bfloat16") in {x.dtype for x in jax.tree.leaves(state.params)}
    for tree in (state.opt_state, state.extra["ema"]):
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


@dataclasses.dataclass(frozen=True)
class Still:
    """An optimizer that changes nothing."""

    weight_decay = 0.0

    def init(self, params):
        return ()

    def update(self, grads, state, params, step):
        return jax.tree.map(jnp.zeros_like, grads), state

    def learning_rate_at(self, step):
        return jnp.float32(0.0)


def test_init_from_another_model_or_from_nothing(tmp_path):
    loop.train(small.experiment(total_steps=1), tmp_path / "donor")
    other = small.experiment(miniatures.TwoTerms(name="tower"))
    with pytest.raises(UserError, match=r"at step 1 does not fit the model: tower/in/kernel: wanted .* found nothing"):
        loop.train(other, tmp_path / "other", init_from=tmp_path / "donor")
    with pytest.raises(UserError, match="nothing: no checkpoint there; give a run directory"):
        loop.train(other, tmp_path / "other", init_from=tmp_path / "nothing")


def test_init_partly_from_takes_what_matches_and_says_so(tmp_path, capsys):
    donor = loop.train(small.experiment(total_steps=2), tmp_path / "donor").state.params
    experiment = small.experiment(miniatures.BothEncoders(), total_steps=1, seed=7, optimizer=Still())
    fresh = loop.train(experiment, tmp_path / "fresh").state.params
    state = loop.train(experiment, tmp_path / "new", init_partly_from=tmp_path / "donor").state
    assert "started from matching parameters (2 matched, 2 missing, 0 unexpected)" in capsys.readouterr().out
    contract.assert_trees_equal(state.params, {**fresh, "encoder": donor["encoder"]})
    nothing = small.experiment(miniatures.TwoTerms(name="tower"))
    with pytest.raises(UserError, match="no leaf of .*donor at step 2 matches the model: it wants .*tower"):
        loop.train(nothing, tmp_path / "nothing", init_partly_from=tmp_path / "donor")


def test_init_takes_the_average_by_which_a_run_is_evaluated(tmp_path, capsys):
    donor = loop.train(small.experiment(total_steps=2, ema=0.5), tmp_path / "donor").state
    experiment = small.experiment(total_steps=1, seed=7, optimizer=Still())
    state = loop.train(experiment, tmp_path / "new", init_from=tmp_path / "donor").state
    assert "started from the parameters of" in (said := capsys.readouterr().out) and "at step 2, averaged," in said
    contract.assert_trees_equal(state.params, donor.extra["ema"])
    with pytest.raises(AssertionError):
        contract.assert_trees_equal(state.params, donor.params)


ENCODER = (("^encoder/", True),)


def test_init_takes_several_sources_under_other_names(tmp_path):
    of = lambda name, seed: loop.train(
        small.experiment(miniatures.TwoTerms(name=name), total_steps=2, seed=seed), tmp_path / name
    ).state.params[name]
    tower, spare = of("tower", 1), of("spare", 2)
    both = small.experiment(miniatures.BothEncoders(), total_steps=1, seed=7, optimizer=Still())
    tower_as_encoder = Init(str(tmp_path / "tower"), rename=(("^tower/", "encoder/"),))
    place = lambda: tmp_path / f"{len(list(tmp_path.iterdir()))}"
    start = lambda *inits: loop.train(dataclasses.replace(both, init=inits), place())
    contract.assert_trees_equal(
        start(tower_as_encoder, Init(str(tmp_path / "spare"))).state.params, {"encoder": tower, "spare": spare}
    )
    with pytest.raises(UserError, match="encoder/in/kernel is in more than one of .*tower, .*tower: rename it"):
        start(tower_as_encoder, tower_as_encoder)
    with pytest.raises(UserError, match="tower at step 2 does not fit the model: tower/in/kernel: wanted nothing"):
        start(Init(str(tmp_path / "tower")), Init(str(tmp_path / "spare")))
    with pytest.raises(UserError, match="rename 'towr' matches no parameter of .*tower at step 2: correct it"):
        start(dataclasses.replace(tower_as_encoder, rename=(("towr", "x"),)))
    for wrong in (("to", "en"), (("(", "x"),)):
        with pytest.raises(UserError, match=r"Init.rename: .* is not \(regular expression, a text\)"):
            Init("tower", rename=wrong)
    with pytest.raises(UserError, match=r"Experiment.init: rename '\^tower/' to .*: invalid group reference 1"):
        start(dataclasses.replace(tower_as_encoder, rename=(("^tower/", r"\1"),)))
    with pytest.raises(UserError, match="--init_from=here and --init_partly_from=there: give one of them"):
        loop.train(both, tmp_path / "two", init_from="here", init_partly_from="there")
    more = dataclasses.replace(both, objective=ThreeEncoders(), init=(tower_as_encoder, Init(str(tmp_path / "spare"))))
    with pytest.raises(UserError, match="none of its sources has third/in/kernel and 1 more: add one that has"):
        loop.train(more, tmp_path / "three")


@dataclasses.dataclass(frozen=True)
class ThreeEncoders(miniatures.BothEncoders):
    def init(self, key):
        return {**super().init(key), **miniatures.Miniature("third").init(key)}


def test_a_frozen_module_comes_whole_or_not_at_all(tmp_path):
    donor = loop.train(small.experiment(miniatures.TwoTerms(name="tower"), total_steps=2), tmp_path / "donor")
    init = Init(str(tmp_path / "donor"), rename=(("^tower/", "encoder/"),), strict=False)
    tuned = small.experiment(miniatures.BothEncoders(), total_steps=1, freeze=ENCODER, init=(init,))
    state = loop.train(tuned, tmp_path / "new").state
    contract.assert_trees_equal(state.frozen["encoder"], donor.state.params["tower"])
    half = dataclasses.replace(init, rename=(("^tower/in", "encoder/in"),))
    with pytest.raises(UserError, match=r"donor lacks encoder/out/kernel of what is frozen, or has them of other shap"):
        loop.train(dataclasses.replace(tuned, init=(half,)), tmp_path / "half")
    with pytest.raises(UserError, match="encoder is frozen, and without Experiment.init or --init_partly_from=DIR it"):
        loop.train(dataclasses.replace(tuned, init=()), tmp_path / "scratch")


def test_what_is_frozen_is_saved_once_and_known_by_its_bytes(tmp_path):
    frozen = small.experiment(total_steps=6, save_every=2, eval_every=100, freeze=(("/in/", True),))
    whole = loop.train(frozen, tmp_path / "whole").state
    loop.train(dataclasses.replace(frozen, total_steps=4), tmp_path / "run")
    kept = Checkpoints(tmp_path / "run" / "frozen")
    stamp = (kept.directory / "0" / "manifest.json").stat().st_mtime_ns
    resumed = loop.train(frozen, tmp_path / "run").state
    contract.assert_trees_equal(jax.device_get(whole), jax.device_get(resumed))
    assert kept.steps() == [0] and (kept.directory / "0" / "manifest.json").stat().st_mtime_ns == stamp
    for step in (4, 6):
        where = tmp_path / "run" / "checkpoints" / str(step)
        tree = (where / "state" / "_METADATA").read_text()
        assert "opt_state" in tree and "frozen" not in tree and manifest.read(where)["frozen"] == kept.digest(0)
    _, arrays, _ = Checkpoints(tmp_path / "run" / "checkpoints").arrays(only=("params",))
    contract.assert_trees_equal(arrays["params"], jax.device_get(whole.all_params))

    other = dataclasses.replace(frozen, seed=5)
    loop.train(other, tmp_path / "other")
    shutil.rmtree(kept.directory)
    shutil.copytree(tmp_path / "other" / "frozen", kept.directory)
    with pytest.raises(UserError, match="frozen is not what checkpoint 6 was made with"):
        loop.train(dataclasses.replace(frozen, total_steps=8), tmp_path / "run")


def test_init_from_brings_running_statistics(tmp_path):
    donor = loop.train(small.experiment(miniatures.RunningStatistics(), total_steps=3), tmp_path / "donor").state
    new = small.experiment(miniatures.RunningStatistics(still=True), total_steps=1, seed=7, optimizer=Still())
    for how in ("init_from", "init_partly_from"):
        state = loop.train(new, tmp_path / how, **{how: tmp_path / "donor"}).state
        contract.assert_trees_equal(state.extra["batch_stats"], donor.extra["batch_stats"])


def test_running_statistics_find_their_parameters_in_parts_and_teachers():
    """A combination keeps its parts' apart; a source need not be one, nor have its parts' names."""
    place = lambda mean, *at: functools.reduce(lambda tree, name: {name: tree}, at[::-1], {"encoder": {"mean": mean}})
    alone, of_teacher = place(np.ones(2), "batch_stats"), place(np.zeros(2), "teacher", "batch_stats")
    joined = place(2 * np.ones(2), "clip", "batch_stats") | place(3 * np.ones(2), "simclr", "batch_stats")
    found = lambda wanted, source: {
        name: x[0] for name, x in initial.stats_for(*map(initial.running_stats, (wanted, source))).items()
    }
    parts = "clip/batch_stats/encoder/mean", "simclr/batch_stats/encoder/mean"
    assert found(joined, alone | of_teacher) == dict.fromkeys(parts, 1.0)
    assert found(joined, joined) == dict(zip(parts, (2.0, 3.0)))
    assert found(alone | of_teacher, place(np.ones(2), "simclr", "batch_stats")) == {
        "batch_stats/encoder/mean": 1.0, "teacher/batch_stats/encoder/mean": 1.0}  # fmt: skip
    assert found(alone, place(np.ones(3), "batch_stats")) == {}


def test_init_from_brings_running_statistics_to_a_part(tmp_path):
    donor = loop.train(small.experiment(miniatures.RunningStatistics(), total_steps=2), tmp_path / "donor").state
    both = Sum((("one", miniatures.RunningStatistics(still=True)), ("two", miniatures.TwoTerms())))
    new = small.experiment(both, total_steps=1, seed=7, optimizer=Still())
    state = loop.train(new, tmp_path / "new", init_from=tmp_path / "donor").state
    contract.assert_trees_equal(state.extra["one"]["batch_stats"], donor.extra["batch_stats"])
