"""One training run as a value: what gin builds, what the loop reads, what a notebook may write by hand."""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launch.run.measures import unit_of
from paradigm import records, schedule
from paradigm.errors import UserError

if TYPE_CHECKING:
    from paradigm.objective import Objective
    from paradigm.optim import Optimizer
    from paradigm.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Init:
    """Where parameters of a new run come from.

    path: a run directory, one checkpoint in it (DIR/checkpoints/120), a directory of the transformers library's
        save_pretrained, or one of the peft library's behind that of its base; a path or a URL. Of a run the parameters
        by which it is evaluated: their average, where one is kept.
    rename: ((regex, replacement), ...) on the names of its leaves, 'a/b/kernel': the first whose regex is found
        rewrites the name as re.sub does. (('^model/', 'text/'),) makes a text model the text tower.
    strict: all that is there has to have its place and shape in the model; and where every source is strict, all of
        the model has to come from them, but for a task's head (Objective.new_modules). False takes what fits by name
        and shape: an encoder under another head.
    bodies: only the modules that are pre-trained have to come from there (paradigm.objective.BODIES); heads are taken
        where there are such, and drawn else.
    """

    path: str
    rename: tuple[tuple[str, str], ...] = ()
    strict: bool = True
    bodies: bool = False

    def __post_init__(self):
        from paradigm import trees  # which brings jax

        trees.check_table(self.rename, "Init.rename", str)


SCHEDULED = ("objective", "data", "optimizer", "ema")  # where a schedule may stand


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run, apart from the machine it runs on. Periods are in steps.

    Attributes:
        objective: what is trained.
        data: a recipe with `build`, such as t5like.data.TextData.
        optimizer: from paradigm.optim.
        total_steps: the run ends here; it is evaluated and saved here too. A schedule without a length has this one.
        batch_size: examples a step, over the whole mesh.
        microbatches: equal parts of a batch whose gradients are added exactly.
        seed: of parameters, of the order of examples, of masks and dropout.
        clip: largest global norm of a gradient; None never clips.
        ema: decay of the average of weights (float or Schedule); None keeps no average.
        freeze: ((regex, bool), ...) on parameters' names, the first match counts: what is True is not trained. It has
            no gradient, no part in clipping and no decay, no optimizer state and no average, and is saved once.
        adapt: the objective's adaptation (paradigm.adapt), whatever the objective: LoRA, PromptTuning ...; None leaves
            it as it is.
        param_dtype, moment_dtype: float32, or bfloat16: what parameters and the optimizer's moments are stored in, half
            the memory, with stochastic rounding (paradigm/precision.py). All sums and losses are float32 in any case.
        init: Inits, where the parameters of a new run come from; () draws them all.
        evaluators: run at each evaluation, on the validation batches.
        log_every: a row of metrics each so many steps.
        eval_every, eval_batches: an evaluation each so many steps, on at most so many validation batches: of more, a
            fixed sample spread evenly over the source.
        save_every, keep: a checkpoint each so many steps; the newest so many stay, and the best one.
        best_metric, best_mode: which checkpoint is the best: 'min' or 'max' of a validation metric.
        workers: processes that prepare batches; 0: a thread of this one.
        mesh: see launch.run.mesh.
        attention: the kernel; 'auto' is what the devices can, 'plain', 'blocks', 'cudnn' or 'splash' one by name.
    """

    objective: "Objective"
    data: Any
    optimizer: "Optimizer"
    total_steps: int
    batch_size: int
    microbatches: int = 1
    seed: int = 0
    clip: float | None = 1.0
    ema: "float | Schedule | None" = None
    freeze: tuple[tuple[str, bool], ...] = ()
    adapt: Any = None
    param_dtype: str = "float32"
    moment_dtype: str = "float32"
    init: tuple[Init, ...] = ()
    evaluators: tuple[Any, ...] = ()
    log_every: int = 10
    eval_every: int = 1000
    eval_batches: int = 20
    save_every: int = 1000
    keep: int = 3
    best_metric: str = "valid/loss"
    best_mode: str = "min"
    workers: int = 0
    mesh: str = "data:1,fsdp:-1,tensor:1"
    attention: str = "auto"

    def __post_init__(self):
        from launch.run import slips  # which brings jax

        slips.check_parts(self)
        if self.adapt is not None and self.objective.adapt != self.adapt:
            object.__setattr__(self, "objective", self.objective.adapted(self.adapt))
        for name in SCHEDULED:
            object.__setattr__(self, name, schedule.for_run(getattr(self, name), self.total_steps))

    @property
    def lacks_words(self):
        """Whether its adaptation names a text that no tokenizer has read (see `completed`)."""
        return self.adapt is not None and self.adapt.lacks_words


def bound(experiment: Experiment, vocabulary=None, classes=(), tokenizer=None) -> Experiment:
    """The experiment with its objective for the vocabulary of its data, or for the one that a checkpoint names.

    vocabulary: t5like.vocabulary.Vocabulary, of a run whose data may be elsewhere; None asks the data. Where they don't
    know, or have no text, the objective stays as it is; to bind twice changes nothing. classes: names of the labels
    that a run was trained with; () leaves an objective that lacks them as it is (see `completed`). tokenizer: reads the
    text that an adaptation names.
    """
    if tokenizer is not None and experiment.lacks_words:
        experiment = dataclasses.replace(experiment, adapt=experiment.adapt.worded(tokenizer.encode))
    objective = experiment.objective
    if vocabulary is None:
        vocabulary = recipe_vocabulary(experiment.data)
    if vocabulary is not None:
        objective = objective.bind(vocabulary)
    if classes:
        objective = objective.bind_classes(len(classes))
    return experiment if objective is experiment.objective else dataclasses.replace(experiment, objective=objective)


def completed(experiment: Experiment, prepared=None) -> Experiment:
    """The experiment with what its data alone can say, where it does not know: how many classes there are, and the
    tokens of the text that an adaptation begins as.

    prepared: what its recipe has built; None builds it in a directory that is removed again. Raises UserError for data
    that the objective cannot be trained on.
    """
    if not (experiment.objective.lacks_classes or experiment.lacks_words):
        return experiment
    if prepared is None:
        with tempfile.TemporaryDirectory() as directory:
            path, window = pathlib.Path(directory, "data"), experiment.objective.raw_length
            return completed(experiment, records.build(experiment.data, path, window, False))
    experiment.objective.check_data(prepared)
    if experiment.lacks_words and prepared.tokenizer is None:
        raise UserError("PromptTuning.text is read by the tokenizer of a run's data, and these have none: leave it out")
    return bound(experiment, classes=prepared.classes, tokenizer=prepared.tokenizer)


def recipe_vocabulary(recipe):
    """The Vocabulary of what a recipe will build; None of data without text, and where it cannot be known here."""
    ask = getattr(recipe, "vocabulary", None)  # recipes of images have none, nor need those of others
    return ask() if callable(ask) else None


def validate(experiment: Experiment, device_count: int | None) -> None:
    """Raises one UserError that lists everything wrong with the experiment on so many devices, each with its fix.

    device_count: None where they are another machine's: then of the settings alone, which takes no time.
    """
    if problems := list(_problems(experiment, device_count)):
        raise UserError("; ".join(problems))


def warnings(experiment: Experiment) -> list[str]:
    """What is no error and yet seldom meant: schedules that end before the run, what begins after it, warm-ups longer
    than it, and a best checkpoint that is the worst."""
    e = experiment
    late = [(name, first) for name, first in e.objective.phases().items() if first >= e.total_steps]
    said = [
        f"objective: {n!r} begins at step {m} and the run has {e.total_steps}: it is never trained" for n, m in late
    ]
    better = unit_of(e.best_metric)[1]
    if better and better != {"min": "lower", "max": "higher"}[e.best_mode]:
        ends = {"min": ("lowest", "max"), "max": ("highest", "min")}[e.best_mode]
        said.append(
            f"the best checkpoint will be that of the {ends[0]} {e.best_metric}, of which {better} is better: set "
            f"Experiment.best_mode = '{ends[1]}'"
        )
    return said + [line for name in SCHEDULED for line in schedule.warnings(getattr(e, name), e.total_steps, name)]


def _problems(e: Experiment, device_count: int | None) -> Iterator[str]:
    for name in "total_steps batch_size microbatches log_every eval_every eval_batches save_every keep".split():
        if getattr(e, name) < 1:
            yield f"Experiment.{name}={getattr(e, name)} must be at least 1"
    if e.workers < 0:
        yield f"Experiment.workers={e.workers} must be 0 (a thread of this process) or more"
    if e.clip is not None and not e.clip > 0:
        yield f"Experiment.clip={e.clip} must be positive, or None for no clipping"
    if not 0 <= e.seed < 2**32:
        yield f"Experiment.seed={e.seed} must lie from 0 to below 2^32: more bits would not reach a key of jax's"
    if isinstance(e.ema, int | float) and not 0 < e.ema < 1:
        yield f"Experiment.ema={e.ema} must lie between 0 and 1, or be None for no average of weights"
    if isinstance(e.ema, schedule.Schedule) and not 0 <= min(ends := e.ema.extremes(e.total_steps)) <= max(ends) <= 1:
        yield f"Experiment.ema={type(e.ema).__name__} goes from {ends[0]:g} to {ends[1]:g}: a decay lies in 0 to 1"
    if e.optimizer is not None:
        rates = [float(e.optimizer.learning_rate_at(e.total_steps * k // 8)) for k in range(8)]
        lowest = min(rates)
        if not all(map(math.isfinite, rates)):
            yield f"the learning rate of {type(e.optimizer).__name__} is not finite: it is {rates[0]:.3g} at first"
        elif lowest < 0:
            yield f"the learning rate of {type(e.optimizer).__name__} falls to {lowest:.3g}: it must be 0 or more"
    from paradigm.precision import DTYPES  # which brings jax

    for name in ("param_dtype", "moment_dtype"):
        if getattr(e, name) not in DTYPES:
            yield f"Experiment.{name}='{getattr(e, name)}' must be {' or '.join(map(repr, DTYPES))}"
    if e.best_mode not in ("min", "max"):
        yield f"Experiment.best_mode='{e.best_mode}' must be 'min' or 'max'"
    if not e.best_metric.startswith("valid/"):
        yield f"Experiment.best_metric='{e.best_metric}' must be a validation metric, as in 'valid/loss'"
    if e.microbatches > 0 and e.batch_size % e.microbatches:
        yield (
            f"Experiment.batch_size={e.batch_size} does not divide into Experiment.microbatches={e.microbatches}: "
            f"choose a multiple of {e.microbatches}"
        )
    if device_count is not None:
        yield from _mesh_problems(e, device_count)


def _mesh_problems(e: Experiment, device_count: int) -> Iterator[str]:
    """Devices, rows and dims that do not divide. Shapes come from jax.eval_shape; nothing is computed."""
    import jax
    from jax.sharding import AbstractMesh

    from launch.run.mesh import mesh_shape
    from paradigm import trees
    from paradigm.partition import CONTEXT, check_context, shardings

    try:
        shape = mesh_shape(e.mesh, device_count)
    except UserError as error:
        yield str(error)
        return
    ways = shape["data"] * shape["fsdp"]
    rows = e.batch_size // max(e.microbatches, 1)
    if rows % ways:
        per = f" in {e.microbatches} microbatches" if e.microbatches > 1 else ""
        yield (
            f"Experiment.batch_size={e.batch_size}{per} does not divide over data x fsdp = {shape['data']} x "
            f"{shape['fsdp']} devices: choose a multiple of {ways * max(e.microbatches, 1)}, or another --mesh"
        )
    try:
        check_context(e.objective, shape.get(CONTEXT, 1))
    except UserError as error:
        yield str(error)
    try:
        params = abstract_params(e.objective)
        shardings(params, e.objective.all_partition_rules, AbstractMesh(tuple(shape.values()), tuple(shape)))
        _, frozen = trees.split(params, e.objective.freeze_table(e.freeze))
        for name in e.objective.given:
            if len(jax.tree.leaves(frozen.get(name, {}))) < len(jax.tree.leaves(params[name])):
                yield (
                    f"{type(e.objective).__name__} reads {name!r} as another run has trained it: set Experiment.freeze "
                    f"= (('^{name}/', True),), and Experiment.init to that run"
                )
    except UserError as error:
        spec = getattr(e.data, "tokenizer", None)
        if spec is not None and recipe_vocabulary(e.data) is None:  # which the model's size is taken from
            error = f"{type(e.data).__name__}.tokenizer={spec!r}: nothing is there, and {error}"
        yield str(error)


def abstract_params(objective: "Objective"):
    """The parameter tree as ShapeDtypeStructs."""
    import jax

    return jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)))


# --- printing -------------------------------------------------------------------------------------------------------


def flatten(value: Any, path: str = "") -> dict[str, str]:
    """An experiment as {'objective.model.heads': '6', ...}: every setting in its resolved form, defaults included."""
    if dataclasses.is_dataclass(value):
        linen = ("parent", "name") if hasattr(value, "clone") else ()  # fields of a module that are no settings
        names = [f.name for f in dataclasses.fields(value) if f.name not in linen]
        own = {path: type(value).__name__} if path else {}
        return own | {k: v for n in names for k, v in flatten(getattr(value, n), f"{path}.{n}".lstrip(".")).items()}
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(v) or isinstance(v, tuple) for v in value):
        return {k: v for i, item in enumerate(value) for k, v in flatten(item, f"{path}[{i}]").items()}
    if isinstance(value, tuple) and len(value) > 16:  # the ids of sentinels
        return {path: f"({value[0]!r}, {value[1]!r} .. {value[-1]!r}: {len(value)})"}
    return {path: getattr(value, "__name__", repr(value))}


def at_default(value: Any, path: str = "") -> set[str]:
    """The names, as `flatten` gives them, of the settings that are their class's defaults, at any depth."""
    if isinstance(value, tuple):
        return {name for i, item in enumerate(value) for name in at_default(item, f"{path}[{i}]")}
    if not dataclasses.is_dataclass(value):
        return set()
    found = set()
    for f in dataclasses.fields(value):
        name, own = f"{path}.{f.name}".lstrip("."), getattr(value, f.name)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        found |= {name} if type(own) is type(default) and own == default else at_default(own, name)
    return found
