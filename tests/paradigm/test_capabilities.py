"""Who can do what, through combinators of any depth, and what of the whole's variables and batches is a part's own."""

import dataclasses

import jax
import numpy as np
import pytest

from launch.run.evaluation import Evaluation
from paradigm import optim
from paradigm.capabilities import Capability, ask, parts
from paradigm.combine import Alternate, Stages, Sum
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.step import init_state
from tests import contract, miniatures
from tests.paradigm.test_contract import batches

OPTIMIZER = optim.AdamW(learning_rate=0.01)


class Negating(Capability):
    """A capability of the tests alone."""

    can = "negate"


@dataclasses.dataclass(frozen=True)
class Still(Negating, miniatures.RunningStatistics):
    """A miniature with BatchNorm whose running statistics stay as they began."""

    still: bool = True


MOVING, STILL = miniatures.RunningStatistics(), Still()
INNER = Sum(parts=(("moving", MOVING), ("negates", STILL)))
NESTED = Stages(parts=(("first", MOVING), ("then", INNER)), boundaries=(1,))


def test_the_first_part_that_can_is_found_at_any_depth():
    assert ask(Negating, STILL, "Test").names == ()
    found = ask(Negating, NESTED, "Test")
    assert found.objective is STILL and found.names == ("then", "negates") and found.whole is NESTED
    assert [part.names for part in parts(NESTED)] == [(), ("first",), ("then",), ("then", "moving"), found.names]
    assert ask(Negating, INNER, "Test").phase is None and found.phase == "then"


def test_nobody_can():
    wanted = r"^Sharpness: Sum cannot negate, Still can: take Sharpness from Experiment.evaluators$"
    with pytest.raises(UserError, match=wanted):
        ask(Negating, Sum(parts=(("a", MOVING), ("b", miniatures.TwoTerms()))), "Sharpness")
    with pytest.raises(UserError, match="^negate: TwoTerms cannot negate, Still can: use another$"):
        ask(Negating, miniatures.TwoTerms(), "negate", "use another")


@pytest.mark.parametrize("which", ["online", "ema"])
def test_a_part_has_its_own_batch_statistics(which):
    """Not the first part's, and with averaged weights too."""
    batch_of = batches(INNER)
    state, _ = contract.run(INNER, OPTIMIZER, batch_of, 0, 2, ema=0.9)
    moved, first = (ask(Negating, INNER, "Test"), next(p for p in parts(INNER) if p.names == ("moving",)))
    whole = INNER.variables(state.params, state.extra, which)
    for part, name in ((moved, "negates"), (first, "moving")):
        mine = part.variables(whole)
        contract.assert_trees_equal(mine["batch_stats"], state.extra[name]["batch_stats"])
        contract.assert_trees_equal(mine["params"], state.extra["ema"] if which == "ema" else state.params)
    assert np.any(first.variables(whole)["batch_stats"]["mean"] != moved.variables(whole)["batch_stats"]["mean"])


def test_variables_of_a_nested_part():
    state = jax.jit(lambda: init_state(NESTED, OPTIMIZER, 0, 0.9))()
    extra = jax.tree.map(lambda x: x, state.extra)
    extra["then"]["negates"]["batch_stats"]["mean"] += 7.0
    for which in ("online", "ema"):
        mine = ask(Negating, NESTED, "Test").variables(NESTED.variables(state.params, extra, which))
        assert (mine["batch_stats"]["mean"] == 7.0).all()


def test_a_teacher_is_that_of_the_part_which_has_one():
    turns = Alternate(parts=(("a", miniatures.TwoTerms()), ("b", miniatures.TeacherQueue())), pattern=("a", "b"))
    state = jax.jit(lambda: init_state(turns, OPTIMIZER, 0))()
    extra = {**state.extra, "b": {**state.extra["b"], "teacher": jax.tree.map(lambda x: x + 1, state.params)}}
    contract.assert_trees_equal(turns.variables(state.params, extra, "teacher")["params"], extra["b"]["teacher"])
    with pytest.raises(KeyError, match="no part of Alternate has variables 'pupil'"):
        turns.variables(state.params, extra, "pupil")
    with pytest.raises(UserError, match="Alternate: no part may be named 'ema'"):
        Alternate(parts=(("ema", miniatures.TwoTerms()),), pattern=("ema",))


class Batches:
    """Data as an evaluator is given them: the batch of each phase, and which were asked for."""

    def __init__(self, objective):
        self.objective, self.asked = objective, []

    def batches(self, phase=None):
        self.asked.append(phase)
        step = 0 if phase is None else self.objective.phases()[phase]
        yield batches(self.objective)(step)

    def examples(self, count, phase=None):
        return {name: x[:count] for name, x in next(self.batches(phase)).items()}


@pytest.mark.parametrize("objective, phase", [(INNER, None), (NESTED, "then"), (STILL, None)])
def test_a_parts_batches_are_those_of_its_phase(objective, phase):
    data = Batches(objective)
    part = ask(Negating, objective, "Test")
    (batch,), few = part.batches(data), part.examples(data, 3)
    assert data.asked == [phase, phase] and set(batch) == set(few) == set(STILL.batch_spec(16))
    assert all((few[name] == x[:3]).all() for name, x in batch.items())


@dataclasses.dataclass(frozen=True)
class Negation(Evaluator):
    needs = Negating


def test_evaluators_are_asked_before_the_first_step():
    @dataclasses.dataclass(frozen=True)
    class Experiment:
        objective: object
        ema: object = None
        evaluators: tuple = (Negation(),)

    class Program:
        experiment = Experiment(NESTED)

    class Data:
        valid = {}

    Evaluation(Program, Data)
    Program.experiment = Experiment(MOVING)
    with pytest.raises(UserError, match="^Negation: RunningStatistics cannot negate, Still can") as told:
        Evaluation(Program, Data)
    assert str(told.value).endswith(". Without it: --gin_param='Experiment.evaluators = ()'")
    Program.experiment = Experiment(MOVING, evaluators=(Negation(), Evaluator(), Negation()))
    with pytest.raises(
        UserError, match=r"^Negation: .*; Negation: .* them: .*Experiment.evaluators = \(@Evaluator\(\),\)'$"
    ):
        Evaluation(Program, Data)
