"""gin texts in, experiments or one clear line out. The miniature objectives stand for modules from outside."""

import dataclasses
from typing import Any

import pytest

from launch.run import registry, slips
from launch.run.experiment import flatten
from paradigm.errors import UserError
from paradigm.layers import Dense
from paradigm.optim import SGD, AdamW, Muon
from tests.miniatures import NumbersData, TwoTerms
from vision.synthetic_scenes import Shapes

GOOD = """
total = 30
Experiment.objective = @TwoTerms()
Experiment.data = @NumbersData()
Experiment.optimizer = @TwoTerms()
Experiment.total_steps = %total
Experiment.batch_size = 8
"""


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """Only Experiment and the miniatures can be named."""
    monkeypatch.setattr(registry, "PACKAGES", ())


def parse(text, *params):
    return registry.parse_text("import tests.miniatures\n" + text, params, name="run.gin")


def failure(text, *params):
    with pytest.raises(UserError) as error:
        parse(text, *params)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_text_becomes_an_experiment_and_params_win():
    run = parse(GOOD, "Experiment.seed = 7", "total = 40", "Experiment.seed = 8")
    assert run.objective == TwoTerms() and type(run.objective) is TwoTerms
    assert (run.total_steps, run.batch_size, run.seed, run.data) == (40, 8, 8, NumbersData())


def test_state_of_an_earlier_parse_is_gone():
    parse(GOOD, "Experiment.seed = 7")
    assert parse(GOOD).seed == 0


def test_the_operative_text_holds_defaults_and_parses_to_the_same():
    run = parse(GOOD, "TwoTerms.name = 'tower'")
    text = registry.operative_config()
    assert "Experiment.microbatches = 1" in text and "total = 30" in text and "import tests.miniatures" in text
    assert registry.parse_text(text) == run and run.objective.name == "tower"
    assert registry.operative_config() == text


def test_files_are_found_as_given_or_shipped_and_includes_go_one_deep(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped" / "runs").mkdir(parents=True)
    (tmp_path / "shipped" / "runs" / "demo.gin").write_text("import tests.miniatures\n" + GOOD)
    (tmp_path / "more.gin").write_text("Experiment.seed = 3\n")
    assert registry.parse(["runs/demo.gin", str(tmp_path / "more.gin")]).seed == 3
    with pytest.raises(
        UserError, match=r"--gin_file=runs/dmeo.gin: no such file here or in .*, did you mean 'runs/demo.gin'\?"
    ):
        registry.parse(["runs/dmeo.gin"])
    (tmp_path / "shipped" / "models").mkdir()
    (tmp_path / "shipped" / "models" / "demo.gin").write_text("")
    (tmp_path / "elsewhere").mkdir()
    for wrong, right in {
        "demo.gin": ", did you mean 'runs/demo.gin'?",
        "demo": ", did you mean 'runs/demo.gin'?",
        "rnus/demo.gin": ", did you mean 'runs/demo.gin'?",
        "modles/demo.gin": ", did you mean 'models/demo.gin'?",
        f"{tmp_path}/mroe.gin": f", did you mean '{tmp_path}/more.gin'?",
        "runs": ": it is a folder; its files are runs/demo.gin",
        str(tmp_path): f": it is a folder; one of its files is {tmp_path}/more.gin",
        f"{tmp_path}/elsewhere/zzzzzzzzzzzz": "; python -m launch.train --list names those that are shipped",
    }.items():
        with pytest.raises(UserError) as error:
            registry.parse([wrong])
        assert str(error.value).endswith(right)
    (tmp_path / "deep.gin").write_text(f"include '{tmp_path}/deeper.gin'\n")
    (tmp_path / "deeper.gin").write_text(f"include '{tmp_path}/more.gin'\n")
    with pytest.raises(UserError, match=r"deeper.gin, included by .*deep.gin:1, includes others: includes go one deep"):
        registry.parse([str(tmp_path / "deep.gin")])


def test_settings_of_an_experiment_made_in_python_are_no_gin_text():
    text = "".join(f"{key} = {value}\n" for key, value in flatten(parse(GOOD)).items())
    with pytest.raises(UserError, match="run.gin lists the settings of an Experiment that was made in Python"):
        registry.parse_text(text, name="run.gin")


def test_includes_and_imports_are_read_alike_in_files_and_params(tmp_path, capfd):
    (tmp_path / "more.gin").write_bytes("# Größe\nExperiment.seed = 3\n".encode("utf-8-sig"))
    include = f"include '{tmp_path}/more.gin'"
    assert parse(GOOD + include).seed == parse(GOOD, include).seed == 3
    assert parse(f"{GOOD}Experiment.seed = 2\n{include}").seed == 3
    assert parse(f"{GOOD}{include}\nExperiment.seed = 2").seed == 2  # the last one wins
    assert failure(f"{GOOD}{include}\nExperiment.sede = 2").startswith("run.gin:10: Experiment has no parameter")
    assert failure(GOOD, "include 'nope.gin'").startswith("--gin_param:1: include 'nope.gin': no such file here")
    for line in ("import nope_nope", "from nope_nope import x"):
        assert "No module named 'nope_nope'" in failure(GOOD, line)
        assert "No module named 'nope_nope'" in failure(GOOD + line)
    (tmp_path / "more.gin").write_bytes("# Größe\n".encode("latin-1"))
    for call in (lambda: parse(GOOD, include), lambda: registry.parse([str(tmp_path / "more.gin")])):
        with pytest.raises(UserError, match="more.gin is not in UTF-8 .* at byte 4.: save it as UTF-8"):
            call()
    assert capfd.readouterr().err == ""


def test_a_macro_that_cannot_be_is_told():
    assert failure(GOOD + "a = %b\nb = %a\nExperiment.seed = %a") == (
        "run.gin: a macro or a configurable is set to itself, or to what refers to it"
    )
    assert failure(GOOD + "Experiment.seed = %Experiment.total_steps") == (
        "run.gin: %Experiment.total_steps is no macro: write name = VALUE, and %name for both settings"
    )


def test_unknown_names_are_met_with_the_nearest(capfd):
    assert failure(GOOD + "TwoTrems.name = 'x'\n") == "run.gin:9: unknown name 'TwoTrems', did you mean 'TwoTerms'?"
    assert (
        failure(GOOD + "Experiment.data = @TwoTrem()") == "run.gin:9: unknown name 'TwoTrem', did you mean 'TwoTerms'?"
    )
    assert failure(GOOD, "Experiment.total_step = 3") == (
        "--gin_param:1: Experiment has no parameter 'total_step', did you mean 'total_steps'?"
    )
    assert failure("include 'nowhere.gin'").startswith("run.gin:2: include 'nowhere.gin': no such file here or in ")
    assert capfd.readouterr() == ("", "")


def test_what_is_missing_is_named_with_the_file_and_the_flag(tmp_path, monkeypatch):
    without = lambda name: "".join(line + "\n" for line in GOOD.splitlines() if name not in line)
    monkeypatch.setattr(registry, "SHIPPED", tmp_path)
    assert failure(without("batch_size")) == (
        "run.gin: Experiment.batch_size is required and not set: "
        'the run file should set it, or a flag, as in --gin_param="Experiment.batch_size = VALUE"'
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo.gin").write_text(GOOD)
    assert failure(without("batch_size")).endswith(
        'the run file should set it, as runs/demo.gin does, or a flag, as in --gin_param="Experiment.batch_size = 8"'
    )
    assert failure(without("total =")).startswith(
        "run.gin: %total is used but not set: the run file should set it, as runs/demo.gin does, "
        'or a flag, as in --gin_param="total = 30"'
    )
    assert failure(GOOD + "Experiment.batch_size = %gin.REQUIRED").startswith(
        "run.gin: Experiment.batch_size is required and not set: "
    )


def test_what_nothing_reads_is_an_error():
    assert failure(GOOD, "seed = 3") == "'seed' is set but nothing reads it, did you mean Experiment.seed?"
    assert failure(GOOD + "totl = 3") == "'totl' is set but nothing reads it, did you mean 'total'?"
    assert failure(GOOD.replace("%total", "%totl")) == (
        "%totl is used but not set, and 'total' is set but nothing reads it: give both one name"
    )
    assert failure(GOOD, "Experiment.seed = %totl").startswith(
        "run.gin: %totl is used but not set: did you mean %total?"
    )
    for bad in (lambda line: failure(GOOD, line), lambda line: failure(GOOD + line)):
        assert bad("Signs.name = 'x'") == (
            "Signs has bindings but nothing refers to @Signs(): remove them, or refer to it; "
            "this experiment is made of Experiment, NumbersData, TwoTerms"
        )
    parse(GOOD + "Experiment.objective = @Signs()", "Signs.name = 'x'")


def test_a_binding_in_a_scope_that_nothing_opens_is_an_error():
    told = "train/Signs.name is set but nothing reads it: refer to @train/Signs(), or leave train/ out"
    assert failure(GOOD + "Experiment.objective = @Signs()\ntrain/Signs.name = 'x'") == told
    assert failure(GOOD, "Experiment.objective = @Signs()", "train/Signs.name = 'x'") == told
    text = GOOD + "Experiment.objective = @train/Signs()\ntrain/Signs.name = 'x'"
    assert parse(text).objective.name == "x"
    assert "did you mean train/Signs.name?" in failure(text + "\ntrian/Signs.name = 'y'")
    assert parse(text, "Experiment.objective = @TwoTerms()").objective == TwoTerms()  # a flag may cut it off


def test_a_param_may_cut_off_what_a_file_binds():
    run = parse(GOOD + "TwoTerms.name = 'x'", "Experiment.total_steps = 4", "Experiment.optimizer = @Signs()")
    assert run.total_steps == 4
    text = GOOD.replace("optimizer = @TwoTerms", "optimizer = @Signs") + "Signs.name = 'x'"
    assert parse(text, "Experiment.optimizer = @CachedPairs()").optimizer.name == "encoder"


@pytest.mark.parametrize("line, text", [
    ("Experiment.data = hello", "text stands in quotes: write Experiment.data = 'hello', or %hello if that is a name"),
    ("Experiment.data = /tmp/my pictures", "text stands in quotes: write Experiment.data = '/tmp/my pictures'"),
    ("Experiment.data = C:/x", "text stands in quotes: write Experiment.data = 'C:/x'"),
    ("Experiment.data = (one, 'two')", "text stands in quotes: write 'one'"),
    ("Experiment.data = 'it", "the quote is not closed: write Experiment.data = 'it'"),
    ("Experiment.data = it'", "the quote is not opened: write Experiment.data = 'it'"),
    ("Experiment.data = \u201crows\u201d", "curly quotes: write straight ones"),
    ("Experiment.seed 3", "the `=` is missing: write Experiment.seed = 3"),
    ("Experiment.seed: 3", "a value is set with one `=`: write Experiment.seed = 3"),
    ("Experiment.seed == 3", "a value is set with one `=`: write Experiment.seed = 3"),
    ("Experiment.seed =", "the value is missing: write Experiment.seed = VALUE"),
    ("Experiment.seed = 3;", "nothing stands behind a value: write Experiment.seed = 3"),
    ("TwoTerms.name = 'a', 'b'", "one value, and several stand in brackets: write TwoTerms.name = ('a', 'b')"),
    ("Experiment.seed = 3 4", "a line has one value, and several stand in brackets: write Experiment.seed = (3, 4)"),
    ("Experiment.seed = 1,000", "numbers have no commas, and a tuple has brackets: write Experiment.seed = 1000"),
    ("Experiment.seed = 2 * 3", "gin does not calculate: write Experiment.seed = the result of 2 * 3"),
    ("Experiment.data = true", "true is written True: write Experiment.data = True"),
    ("Experiment.data = (1, false)", "false is written False"),
    ("Experiment.data = null", "null is written None: write Experiment.data = None"),
    ("Experiment.data = TwoTerms()", "what is made by gin has an @: write Experiment.data = @TwoTerms()"),
    ("Experiment.data = @TwoTerms", "@TwoTerms is the class itself: write @TwoTerms() for what it makes"),
    ("Experiment.data = (@a/TwoTerms, 3)", "@a/TwoTerms is the class itself: write @a/TwoTerms() for what it makes"),
    ("Experiment.data = @TwoTerms(name='x')", "its settings are lines of their own, as in TwoTerms.name = 'x'"),
    ("@TwoTerms.name = 'x'", "a binding has no @ on its left: write TwoTerms.name = 'x'"),
    ("TwoTerms = 3", "TwoTerms is no setting: write TwoTerms.parameter = value"),
    ("Experiment.evaluators = (1,", "a bracket or a quote is left open in `Experiment.evaluators = (1,`: close it"),
])  # fmt: skip
def test_slips_are_told_in_words_with_their_line(line, text):
    message = failure(GOOD + line)
    assert text in message and message.startswith("run.gin:9: ")
    assert "node" not in message and "token" not in message.lower()
    assert failure(GOOD, line).startswith("--gin_param:1: ")


@pytest.mark.parametrize("line, text", [
    ("Experiment.batch_size = '64'", "Experiment.batch_size = '64' is a text where a whole number is wanted: leave"),
    ("Experiment.batch_size = 6.5", "Experiment.batch_size = 6.5 is not a whole number"),
    ("Experiment.clip = True", "Experiment.clip = True is not a number or None"),
    ("Experiment.mesh = 3", "Experiment.mesh = 3 is not a text"),
    ("TwoTerms.name = 3", "TwoTerms.name = 3 is not a text"),
    ("Experiment.ema = '0.9'", "Experiment.ema = '0.9' is a text where a number or a schedule or None is wanted"),
    ("Experiment.clip = @Signs()", "Experiment.clip = @Signs() is not a number or None"),
    ("Experiment.seed = {'a': 1}", "Experiment.seed = {'a': 1} is not a whole number"),
    ("Experiment.optimizer = @AdamW()\nAdamW.learning_rate = '1e-3'", "a text where a number or a schedule is wanted"),
    ("Experiment.optimizer = @AdamW()\nAdamW.layer_decay = 0.7", "layer_decay = 0.7 is not @LayerDecay() or None"),
    ("Experiment.data = @Asks()\nAsks.model = 'vit'", "Asks.model = 'vit' is of another kind than Asks takes: write @"),
    ("Experiment.data = @Asks()\nAsks.model = @Signs()", "Asks.model = @Signs() is of another kind than Asks takes"),
    ("Experiment.data = @Cuts()\nCuts.side = 0", "Cuts.side = 0 must be above 0: it is divided by"),
    ("Experiment.data = @Asks()\nAsks.model = @Tiles()\nTiles.patch = 0", "Tiles.patch = 0 must be above 0: it is"),
    ("Experiment.data = @cuts()\ncuts.side = '3'", "cuts.side = '3' is of another kind than cuts takes: write @NAME"),
    ("Experiment.data = @Cuts()\nCuts.side = @Signs()", "Cuts.side = @Signs() is not a whole number"),
    ("Experiment.data = @Cuts()\nCuts.side = {'a': 1}", "Cuts.side = {'a': 1} is not a whole number"),
    ("Experiment.adapt = 'lora'", "Experiment.adapt = 'lora' is no adaptation: write @NAME(), as in @LoRA()"),
    ("Experiment.init = '/tmp/base'", "Experiment.init = '/tmp/base' is no init: write @NAME(), as in @Init()"),
    ("Experiment.evaluators = (@TwoTerms())", "is no tuple: a tuple of one has a comma, as in (@TwoTerms(),)"),
    ("Experiment.evaluators = @TwoTerms()", "is no tuple: a tuple of one has a comma, as in (@TwoTerms(),)"),
])  # fmt: skip
def test_a_value_of_the_wrong_kind_is_told(line, text):
    for configurable in (AdamW, Asks, Cuts, Tiles, cuts):
        registry.register(configurable)
    assert text in failure(GOOD + line)


@dataclasses.dataclass(frozen=True)
class Draws:
    count: int = 4
    temperature: float = 0.0
    top_p: float | None = None


@pytest.mark.parametrize("value, said", [
    (AdamW(1e-3, b2=1.5), "AdamW.b2 = 1.5 must be from 0 to below 1"),
    (AdamW(1e-3, weight_decay=-0.1), "AdamW.weight_decay = -0.1 must be 0 or more"),
    (AdamW(1e-3, eps=float("inf")), "AdamW.eps = inf must be a finite number"),
    (Muon(adam_learning_rate=-1.0), "Muon.adam_learning_rate = -1.0 must be 0 or more"),
    (SGD(0.1, momentum=-0.9), "SGD.momentum = -0.9 must be from 0 to 1"),
    (Draws(temperature=-0.1), "Draws.temperature = -0.1 must be 0 or more"),
    (Draws(top_p=0.0), "Draws.top_p = 0.0 must be above 0 and at most 1"),
    ((Draws(), Draws(count=-1)), "Draws.count = -1 must be 0 or more"),
    (Shapes(seed=2**32), "Shapes.seed = 4294967296 must be from 0 to below 2^32"),
    (Dense((3,), dtype="fp16"), "Dense.dtype = 'fp16': the texts that it can be are float32, bfloat16, float16"),
])  # fmt: skip
def test_a_value_that_no_setting_of_its_name_can_be_is_told(value, said):
    assert list(slips.wrong_values(value)) == [said]


def test_a_default_is_its_owners_to_choose():
    from_the_end = dataclasses.make_dataclass("FromTheEnd", [("shift", int, -1)], frozen=True)
    assert not list(slips.wrong_values(from_the_end()))
    assert list(slips.wrong_values(from_the_end(-2))) == ["FromTheEnd.shift = -2 must be 0 or more"]


def test_numbers_that_cannot_be_stop_the_parse():
    registry.register(AdamW)
    text = GOOD + "Experiment.optimizer = @AdamW()\nAdamW.learning_rate = 0.1\nAdamW.b1 = 1.0"
    assert failure(text) == "AdamW.b1 = 1.0 must be from 0 to below 1"
    parse(text, "AdamW.b1 = 0.0")


@pytest.mark.parametrize("line", [
    "Experiment.clip = 2", "Experiment.clip = None", "Experiment.freeze = [('in', True)]", "Experiment.ema = 0.5",
    "Experiment.mesh = 'an @address, a # and a %percent'", "Experiment.seed = 1  # @Nobody", "Experiment.keep = 1_0",
])  # fmt: skip
def test_what_is_right_passes(line):
    parse(GOOD + line)


def test_a_constructor_that_refuses_is_named():
    registry.register(Refuses)
    assert failure(GOOD + "Experiment.data = @Refuses()") == "run.gin: Refuses: size 3 is not allowed"
    assert failure(GOOD + "Experiment.data = @refuses_too()") == "t5: unknown size"


@dataclasses.dataclass(frozen=True)
class Refuses:
    size: int = 3

    def __post_init__(self):
        raise ValueError(f"size {self.size} is not allowed")


@dataclasses.dataclass(frozen=True)
class Asks:
    model: Any = None

    def __post_init__(self):
        assert self.model.image_size


@dataclasses.dataclass(frozen=True)
class Cuts:
    side: int = 4

    def __post_init__(self):
        assert 8 % self.side >= 0


@dataclasses.dataclass(frozen=True)
class Tiles:
    patch: int = 4

    @property
    def image_size(self):
        return 8 // self.patch


def cuts(side=4):
    return Cuts(max(side, 2))


def refuses_too():
    raise UserError("t5: unknown size")


registry.register(refuses_too)


def test_modules_from_outside(tmp_path, monkeypatch):
    (tmp_path / "outside_objectives.py").write_text(
        "import dataclasses\nfrom tests.miniatures import NumbersData, TwoTerms\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mine(TwoTerms):\n  rate: float = 0.5\n"
    )
    (tmp_path / "outside_nothing.py").write_text("x = 1\n")
    (tmp_path / "outside_clash.py").write_text(
        "import dataclasses\nfrom tests import miniatures\n"
        "@dataclasses.dataclass(frozen=True)\nclass TwoTerms(miniatures.TwoTerms):\n  rate: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.gin").write_text(GOOD.replace("objective = @TwoTerms", "objective = @Mine"))
    run = registry.parse([str(tmp_path / "mine.gin")], ["Mine.rate = 0.25"], ["tests.miniatures", "outside_objectives"])
    assert type(run.objective).__name__ == "Mine" and run.objective.rate == 0.25
    assert registry.parse_text(registry.operative_config()) == run  # the imports travel with the run
    for module, text in {
        "outside_nothing": "--import=outside_nothing: it defines nothing that a gin file could name: no dataclass",
        "outside_clash": "outside_clash.TwoTerms: tests.miniatures has that name already; choose another",
        "no_such_module": "--import=no_such_module: No module named 'no_such_module'; is its folder on PYTHONPATH?",
    }.items():
        with pytest.raises(UserError) as error:
            registry.parse([], [], ["tests.miniatures", module])
        assert text in str(error.value)


OUTSIDE = """
import dataclasses
from flax import linen as nn
from paradigm.evaluator import Evaluator
from tests.miniatures import NumbersData, TwoTerms

class Net(nn.Module):
    width: int = 3

@dataclasses.dataclass(frozen=True)
class Counts(Evaluator):
    k: int = 1

@dataclasses.dataclass(frozen=True)
class Recipe:
    source: str = "here"
    net: object = None

    def build(self, cache_dir, window=None, progress=True):
        return self

def wide(width):
    return Net(width)

class Helper:
    pass

def _hidden():
    pass
"""


def test_outside_models_evaluators_recipes_and_functions_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "outside_all.py").write_text(OUTSIDE)
    (tmp_path / "outside_listed.py").write_text("__all__ = ['listed']\ndef listed(): return 3\ndef other(): return 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = GOOD.replace("@NumbersData()", "@Recipe()") + "Recipe.net = @wide()\nwide.width = 7\n"
    text += "Experiment.evaluators = (@Counts(),)\nCounts.k = 2\nExperiment.seed = @listed()\n"
    (tmp_path / "mine.gin").write_text(text)
    run = registry.parse([str(tmp_path / "mine.gin")], [], ["tests.miniatures", "outside_all", "outside_listed"])
    assert run.data.net.width == 7 and run.evaluators[0].k == 2 and run.seed == 3
    assert registry.imported()["outside_all"] == [tmp_path / "outside_all.py"]
    assert registry.register_module("outside_listed") == ["listed"]
    assert sorted(registry.register_module("outside_all")) == ["Counts", "Net", "Recipe", "wide"]
