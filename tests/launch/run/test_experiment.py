import dataclasses
import pathlib
import re

import jax.numpy as jnp
import pytest

from launch.run import registry
from launch.run.experiment import Experiment, bound, flatten, validate, warnings
from launch.run.measures import unit_of
from launch.storage.workdir import config_diff
from multimodal.data import PairData
from multimodal.towers import clip_text
from paradigm.combine import Stages, Sum
from paradigm.errors import UserError
from paradigm.objective import Objective
from paradigm.optim import AdamW
from paradigm.schedule import Linear
from tests.miniatures import BothEncoders, Miniature, NumbersData, Rows, TwoTerms, alternating
from tests.multimodal import tiny


@dataclasses.dataclass(frozen=True)
class Uneven(TwoTerms):
    """Its one kernel has 6 rows."""

    def init(self, key):
        return {"encoder": {"in": {"kernel": jnp.zeros((6, 8))}}}


def experiment(**changes):
    good = dict(objective=TwoTerms(), data=NumbersData(), optimizer=AdamW(1e-3), total_steps=10, batch_size=8)
    return Experiment(**{**good, **changes})


def problem(**changes):
    with pytest.raises(UserError) as error:
        validate(experiment(**changes), 8)
    return str(error.value)


def test_a_good_one_passes():
    validate(experiment(), 1)
    validate(experiment(microbatches=2, mesh="fsdp:2,tensor:4"), 8)


@pytest.mark.parametrize("changes, text", [
    ({"total_steps": 0}, "Experiment.total_steps=0 must be at least 1"),
    ({"save_every": 0}, "Experiment.save_every=0 must be at least 1"),
    ({"keep": 0}, "Experiment.keep=0 must be at least 1"),
    ({"workers": -1}, "Experiment.workers=-1 must be 0 (a thread of this process) or more"),
    ({"clip": 0.0}, "Experiment.clip=0.0 must be positive, or None for no clipping"),
    ({"ema": 1.0}, "Experiment.ema=1.0 must lie between 0 and 1, or be None"),
    ({"ema": 1}, "Experiment.ema=1 must lie between 0 and 1, or be None"),
    ({"ema": Linear(0.5, final=1.5)}, "Experiment.ema=Linear goes from 0.5 to 1.5: a decay lies in 0 to 1"),
    ({"seed": -1}, "Experiment.seed=-1 must lie from 0 to below 2^32"),
    ({"seed": 2**32}, "Experiment.seed=4294967296 must lie from 0 to below 2^32"),
    ({"best_mode": "low"}, "Experiment.best_mode='low' must be 'min' or 'max'"),
    ({"best_metric": "loss"}, "Experiment.best_metric='loss' must be a validation metric, as in 'valid/loss'"),
    ({"microbatches": 3}, "Experiment.batch_size=8 does not divide into Experiment.microbatches=3: "
                          "choose a multiple of 3"),
    ({"batch_size": 12}, "Experiment.batch_size=12 does not divide over data x fsdp = 1 x 8 devices: "
                         "choose a multiple of 8"),
    ({"microbatches": 2}, "Experiment.batch_size=8 in 2 microbatches does not divide over data x fsdp = 1 x 8 devices: "
                          "choose a multiple of 16"),
    ({"param_dtype": "float16"}, "Experiment.param_dtype='float16' must be 'float32' or 'bfloat16'"),
    ({"mesh": "fsdp:3"}, "mesh 'fsdp:3' does not divide the devices"),
    ({"mesh": "tensro:2"}, "unknown axis 'tensro', did you mean 'tensor'?"),
    ({"objective": Uneven(), "mesh": "fsdp:4,tensor:2"},
     "encoder/in/kernel of shape (6, 8): dim 6 does not divide over mesh axis 'fsdp'"),
    ({"freeze": (("encodr", True),)}, "freeze: 'encodr' matches no parameter (such as encoder/in/kernel"),
    ({"freeze": (("", True),)}, "freezes every parameter, and nothing is left to train"),
])  # fmt: skip
def test_each_problem_has_its_fix(changes, text):
    assert text in problem(**changes)


class Reading(BothEncoders):
    """Its encoder is another run's."""

    given = ("encoder",)


def test_what_another_run_has_trained_has_to_be_frozen():
    validate(experiment(objective=Reading(), freeze=(("^encoder/", True),)), 1)
    for freeze in ((), (("^encoder/in/", True),)):
        text = problem(objective=Reading(), freeze=freeze)
        assert "Reading reads 'encoder' as another run has trained it: set Experiment.freeze = (('^encoder/', " in text


def test_an_objective_that_is_not_finished_is_told_with_what_it_lacks():
    bare = type("Bare", (Objective,), {"batch_spec": TwoTerms.batch_spec, "flops": Sum.flops})()
    for objective in (bare, Sum(parts=(("a", TwoTerms()), ("b", bare)))):
        with pytest.raises(
            UserError, match="Bare lacks preprocess, modules, partition_rules, loss: see paradigm/object"
        ):
            experiment(objective=objective)
    with pytest.raises(UserError, match=r"Experiment.objective = @Rows\(\) is no objective"):
        experiment(objective=Rows())


def test_a_stage_that_a_run_never_reaches_is_told():
    stages = Stages((("one", TwoTerms()), ("two", TwoTerms())), boundaries=(10,))
    (said,) = warnings(experiment(objective=stages))
    assert said == "objective: 'two' begins at step 10 and the run has 10: it is never trained"
    assert warnings(experiment(objective=stages, total_steps=11)) == []


def test_a_best_checkpoint_that_is_the_worst_is_told():
    best = lambda metric, mode: warnings(experiment(best_metric=metric, best_mode=mode))
    wrong = ("valid/accuracy", "min", "max"), ("valid/zero_shot@5", "min", "max"), ("valid/loss", "max", "min")
    for metric, mode, other in wrong:
        assert best(metric, other) == []
        (said,) = best(metric, mode)
        assert metric in said and said.endswith(f"is better: set Experiment.best_mode = '{other}'")
    assert best("valid/mine", "min") == best("valid/mine", "max") == []


def test_no_run_keeps_its_worst_checkpoint():
    for path in (pathlib.Path(__file__).parents[3] / "gin_configs").rglob("*.gin"):
        set_to = dict(re.findall(r"^Experiment\.(best_\w+) = '(\S+)'", path.read_text(), re.MULTILINE))
        _, better = unit_of(set_to.get("best_metric", "valid/loss"))
        assert better == {"min": "lower", "max": "higher"}[set_to.get("best_mode", "min")], path


def test_captions_have_no_sentinels():
    """Bytes are 259 ids; text has sentinels above them."""
    pairs = dict(data=PairData(tokenizer="bytes"), optimizer=AdamW(1e-3))
    validate(experiment(objective=tiny.clip(), **pairs), 1)
    fewer = tiny.clip(tokenizer=None, text=clip_text("tiny", 258, tiny.LENGTH, **tiny.TOWER))
    assert bound(experiment(objective=tiny.clip(tokenizer=None), **pairs)).objective.text.vocab_size == 259
    with pytest.raises(UserError, match="the tokenizer has 259 ids but the text tower of CLIP 258"):
        bound(experiment(objective=fewer, **pairs))


def test_all_problems_are_listed_at_once():
    message = problem(objective=Uneven(), total_steps=-1, batch_size=12, microbatches=5, mesh="fsdp:8")
    assert message.count("; ") >= 3 and "\n" not in message
    assert all(part in message for part in ("total_steps=-1", "microbatches=5", "data x fsdp", "encoder/in/kernel"))


OLD = """
# Macros:
total_steps = 30

# Parameters for Experiment:
Experiment.batch_size = 8
Experiment.evaluators = (@Infill(),)
Experiment.mesh = 'data:1'
Experiment.objective = @TwoTerms()
Experiment.total_steps = %total_steps

Infill.prompts = \\
    ('one',
     'two')
Linear.total_steps = %total_steps
TwoTerms.name = 'encoder'
"""


def test_a_resumed_run_may_change_what_changes_no_example():
    assert config_diff(OLD, OLD) == []
    new = OLD.replace("= 30", "= 60").replace("data:1", "fsdp:-1").replace("'two'", "'three'")
    assert new.count("three") == 1 and config_diff(OLD, new) == []
    assert config_diff(OLD, OLD.replace("Experiment.evaluators = (@Infill(),)", "Experiment.evaluators = ()")) == []


def test_anything_else_is_refused_with_its_lines():
    new = OLD.replace("batch_size = 8", "batch_size = 16").replace("TwoTerms.name = 'encoder'", "TwoTerms.rate = 0.5")
    assert config_diff(OLD, new) == [
        "- Experiment.batch_size = 8",
        "+ Experiment.batch_size = 16",
        "- TwoTerms.name = 'encoder'",
        "+ TwoTerms.rate = 0.5",
    ]
    assert config_diff(OLD, OLD.replace("Linear.total_steps = %total_steps", "Linear.total_steps = 40")) == [
        "- Linear.total_steps = %total_steps",
        "+ Linear.total_steps = 40",
    ]
    longer = OLD.replace("TwoTerms.name = 'encoder'", "TwoTerms.parts = \\\n    ('a',\n     'b')")
    assert config_diff(longer, longer.replace("'b'", "'c'")) == [
        "- TwoTerms.parts = ('a', 'b')",
        "+ TwoTerms.parts = ('a', 'c')",
    ]


def test_a_setting_that_came_with_newer_code_is_no_difference_at_its_default(monkeypatch):
    monkeypatch.setattr(registry, "PACKAGES", ())
    text = "import tests.miniatures\nExperiment.objective = @TwoTerms()\nExperiment.data = @NumbersData()\n"
    text += "Experiment.optimizer = @TwoTerms()\nExperiment.total_steps = 3\nExperiment.batch_size = 8\n"
    registry.parse_text(text)
    older = re.sub(r"^Experiment\.(seed|clip) = .*\n", "", registry.operative_config(), flags=re.MULTILINE)
    diff = lambda: config_diff(older, registry.operative_config(), registry.unset())
    assert diff() == []
    registry.parse_text(text, ["Experiment.seed = 0", "Experiment.clip = 2.0"])  # said, and so meant
    assert diff() == ["+ Experiment.clip = 2.0", "+ Experiment.seed = 0"]
    registry.parse_text(text)
    was = registry.operative_config().replace(
        "Experiment.seed = 0", "Experiment.seed = 5"
    )  # a default that has changed
    assert config_diff(was, registry.operative_config(), registry.unset()) == [
        "- Experiment.seed = 5", "+ Experiment.seed = 0",
    ]  # fmt: skip


def test_the_text_that_gin_prints_is_understood(monkeypatch):
    monkeypatch.setattr(registry, "PACKAGES", ())
    text = """
import tests.miniatures
Experiment.objective = @TwoTerms()
Experiment.data = @NumbersData()
Experiment.freeze = \\
    (('a rather long value that gin will print on lines of its own', True), ('as it does not fit on one line', True))
Experiment.optimizer = @TwoTerms()
Experiment.total_steps = 3
Experiment.batch_size = 8
"""
    registry.parse_text(text)
    one = registry.operative_config()
    registry.parse_text(text, ["Experiment.total_steps = 4", "Experiment.keep = 9"])
    assert config_diff(one, registry.operative_config()) == []
    registry.parse_text(text.replace("on one line", "on this line"), ["Experiment.seed = 1"])
    diff = config_diff(one, registry.operative_config())
    assert [line.split(" =")[0] for line in diff] == [
        "- Experiment.freeze", "+ Experiment.freeze", "- Experiment.seed", "+ Experiment.seed",
    ]  # fmt: skip
    assert "on this line" in diff[1]


def test_parts_that_are_none_are_refused_wherever_an_experiment_is_made():
    for name, given, said in (
        ("objective", "x", "objective = 'x' is no objective"),
        ("data", None, "data = None is no data"),
        ("evaluators", ("x",), "evaluators = 'x' is no evaluator"),
        ("evaluators", TwoTerms(), r"evaluators = @TwoTerms\(\) is no tuple: .*, as in \(@TwoTerms\(\),\)"),
    ):
        with pytest.raises(UserError, match=f"Experiment.{said}"):
            experiment(**{name: given})


def test_flatten_shows_every_setting_in_its_resolved_form():
    flat = flatten(experiment(objective=alternating()))
    assert flat["total_steps"] == "10" and flat["best_metric"] == "'valid/loss'"
    assert flat["objective"] == "Alternate" and flat["objective.parts[0][1]"] == "TwoTerms"
    assert flat["objective.parts[0][0]"] == "'recall'" and flat["objective.parts[0][1].name"] == "'encoder'"
    assert flat["objective.pattern"] == "('recall', 'recall', 'signs')"
    assert {f.name for f in dataclasses.fields(Miniature)} <= {k.rsplit(".")[-1] for k in flat}
