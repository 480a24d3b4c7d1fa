"""The validation of a state, during training and after it."""

import dataclasses
import itertools
import math

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.run.registry import references
from paradigm import progress
from paradigm.errors import UserError
from paradigm.metrics import mean, merge
from paradigm.step import make_eval_step

LOOKED_AT = 2  # held-out examples that are read before the first step


class Evaluation:
    """Runs the validation set and the evaluators. With an average of weights (ema) it is the average that is evaluated.

    Each example counts once: sums are added over batches, padding has weight 0, and only then are they divided.

    Raises UserError when an evaluator cannot work with the objective or the data, or held-out examples cannot be read:
    before the first step, then.
    """

    def __init__(self, program, data):
        self._program, self._data, self._experiment = program, data, program.experiment
        _check(self._experiment, data)
        for dataset in data.valid.values():
            dataset.read(0, slice(0, LOOKED_AT))
        self._which = "online" if self._experiment.ema is None else "ema"
        self._steps = {}  # phase -> executable, compiled when first needed

    def run(self, state, abandon=lambda: False):
        """({'valid/NAME': float}, artefacts) of a state; None when `abandon()` turned true between two batches.

        'valid/loss' is the sum over terms of their means; where there are several, each is 'valid/loss/TERM' too. What
        weighs nothing in all of the validation set adds nothing, as in training. A name that another evaluator has
        already given ends in _2.
        """
        sums, params = {}, state.all_params
        with self._program.context():
            for phase in self._data.valid:
                for batch in self._data.batches(phase, self._program.rows()):
                    if abandon():
                        return None
                    metrics = self._step(phase)(params, state.extra, self._program.put(batch, phase))
                    sums = merge(sums, jax.device_get(metrics))
            means = {name: mean(*pair) for name, pair in sums.items()}
            terms = [name for name in means if name.startswith("loss/")]
            weighed = [means[name] for name in terms if sums[name][1]]
            named = {"loss": sum(weighed) if weighed else math.nan} | means
            if len(terms) == 1:
                del named[terms[0]]
            artefacts = []
            objective = self._experiment.objective
            for evaluator in self._experiment.evaluators:
                variables = objective.variables(params, state.extra, self._which)
                progress.report(type(evaluator).__name__)
                with progress.within(type(evaluator).__name__):
                    more, shown = evaluator.run(objective, variables, self._data)
                named |= {_free(name, named): value for name, value in more.items()}
                for artefact in shown:
                    if (name := _free(artefact.name, [one.name for one in artefacts])) != artefact.name:
                        artefact = dataclasses.replace(artefact, name=name)
                    artefacts.append(self._titled(artefact, int(state.step)))
        return {f"valid/{name}": float(value) for name, value in named.items()}, artefacts

    def _titled(self, artefact, step):
        """An artefact; a picture says of what run and step it is, wherever it is shown."""
        if artefact.kind != "image":
            return artefact
        from vision.sheet import titled

        title = f"{artefact.name} · {type(self._experiment.objective).__name__} · step {step:,}"
        return dataclasses.replace(artefact, value=titled(artefact.value, title))

    def _step(self, phase):
        if phase not in self._steps:
            e = self._experiment
            step = make_eval_step(e.objective, seed=e.seed, phase=phase, which=self._which)
            self._steps[phase] = jax.jit(step, out_shardings=NamedSharding(self._program.mesh, P()))
        return self._steps[phase]


def _free(name, taken):
    """The name, or NAME_2, NAME_3 ... where it is taken: two evaluators of one class would overwrite each other."""
    return next(free for n in itertools.count(1) if (free := name if n == 1 else f"{name}_{n}") not in taken)


def _check(experiment, data):
    """One UserError of all evaluators that cannot work with the objective or the data, and the line without them."""
    problems, left = [], []
    for evaluator, written in zip(experiment.evaluators, references("Experiment.evaluators", experiment.evaluators)):
        try:
            evaluator.check(experiment.objective, data)
            left.append(written)
        except UserError as error:
            problems.append(str(error))
    if problems:
        rest = f"({', '.join(left)}{',' * (len(left) == 1)})"
        one = "it" if len(problems) == 1 else "them"
        raise UserError(f"{'; '.join(problems)}. Without {one}: --gin_param='Experiment.evaluators = {rest}'")
