"""Evaluate a checkpoint of a run on its validation set.

    python -m launch.evaluate --workdir=/tmp/demo                 the newest checkpoint
    python -m launch.evaluate --workdir=/tmp/demo --step=best     the best by the run's own best_metric
    python -m launch.evaluate --workdir=/tmp/demo --step=200 --gin_param="Experiment.eval_batches = 1000"
    python -m launch.evaluate --workdir=/tmp/base --adapted=/tmp/lora     what /tmp/lora has forgotten of pre-training

Metrics, sampled texts and tables go to the console; the last line is one JSON object {"step": ..., "valid/loss": ...}.
It is the code that evaluates during training, so that a number here is the number that training would have logged. The
run directory is only read, but for data/, which is prepared anew where it is gone. With --adapted it is validated with
the model that another run, started from it, made of its own: the adaptation's leaves in their places, its heads left
out.
"""

import contextlib
import json

from absl import flags

from launch.run import cli, forgetting
from launch.run.data import Data, labels_of, tokenizer_of, vocabulary_of_run
from launch.run.evaluation import Evaluation
from launch.run.experiment import bound, completed, validate
from launch.run.mesh import make_mesh
from launch.run.program import Program
from launch.run.writers import Console, number
from launch.storage import filesystem, sync
from launch.storage.checkpoint import Checkpoints
from launch.storage.workdir import config_of
from paradigm.capabilities import parts
from paradigm.classes import OnClasses, check_same
from paradigm.errors import UserError
from paradigm.progress import heard_by, timed


def evaluate(workdir, step=None, gin_params=(), adapted=None):
    """(step, metrics, artefacts) of a checkpoint of the run in `workdir`, a path or a URL; step as in Checkpoints.find.

    adapted: another run, started from this one, whose newest parameters are taken in place of this one's.

    Raises UserError when there is no run or no such checkpoint, or the other run's model is not this one's.
    """
    workdir, experiment = _experiment("--workdir", workdir, gin_params)
    other = None
    if adapted is not None:
        adapted, other = _experiment("--adapted", adapted)
        experiment = forgetting.adapted_as(experiment, other)
    program = Program(experiment, make_mesh(experiment.mesh))
    checkpoints = _checkpoints(workdir, experiment)
    if other is not None:
        state, step = forgetting.adapted_state(program, checkpoints, _checkpoints(adapted, other), adapted, step)
    else:
        state, _ = checkpoints.needed(checkpoints.restore(program.state, step, without=("opt_state",)))
        step = int(state.step)
    data = Data(experiment, sync.local(workdir) / "data")
    if any(isinstance(part.objective, OnClasses) for part in parts(experiment.objective)):
        check_same(labels_of(workdir), data.labels, "what it is to be evaluated on")
    evaluation, console = Evaluation(program, data), Console(0, 0, "")
    with contextlib.closing(console), heard_by(console.status):
        metrics, artefacts = evaluation.run(state)
    return step, metrics, artefacts


def _experiment(flag, workdir, gin_params=()):
    """(the run directory as a path, its Experiment)."""
    from launch.run import registry

    workdir = filesystem.as_path(workdir)
    with filesystem.explained(workdir):
        text = config_of(workdir)
    if text is None:
        raise UserError(f"{flag}={workdir}: no run is here (no config.gin); give that of a training run")
    experiment = registry.parse_text(text, gin_params, str(workdir / "config.gin"))
    validate(experiment, None)
    return workdir, completed(bound(experiment, vocabulary_of_run(workdir), labels_of(workdir), tokenizer_of(workdir)))


def _checkpoints(workdir, experiment):
    return Checkpoints(workdir / "checkpoints", experiment.keep, experiment.best_metric, experiment.best_mode)


def main(argv):
    if argv[1:]:
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --workdir={argv[1]}? See --help")
    if not WORKDIR.value:
        raise UserError("--workdir is required: the directory of a training run, as in --workdir=/tmp/demo")
    step = STEP.value
    if step not in (None, "best"):
        if not step.isdecimal():
            raise UserError(f"--step={step}: write a number of steps or 'best'; leave it out for the newest")
        step = int(step)
    mesh = [f"Experiment.mesh = {MESH.value!r}"] if MESH.value else []
    with timed() as rates:
        step, metrics, artefacts = evaluate(WORKDIR.value, step, GIN_PARAM.value + mesh, ADAPTED.value)
    for artefact in artefacts:
        if artefact.kind == "text":
            print(f"{artefact.name}:\n" + "\n".join(f"  {line}" for line in artefact.value.splitlines()))
        elif artefact.kind == "table":
            print(f"{artefact.name}:\n" + "\n".join("  " + "  ".join(map(str, row)) for row in artefact.value))
    width = max(map(len, metrics))
    for name, value in {**metrics, **rates.per_second()}.items():
        print(f"{name:<{width}}  {value:.6g}")
    print(json.dumps({"step": step} | {name: number(value) for name, value in metrics.items()}))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The run directory of a training run.")
    STEP = flags.DEFINE_string("step", None, "Which checkpoint: a number of steps, or 'best'; the newest if left out.")
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding on top of the run's, as in launch.train.")
    ADAPTED = flags.DEFINE_string("adapted", None, "A run started from this one: its model, by this run's validation.")
    MESH = flags.DEFINE_string("mesh", None, "How the devices here are used, if not as in training.")
    cli.run(main)
