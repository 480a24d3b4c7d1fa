"""The state that a run begins with: from its own checkpoint, from another run's, or drawn."""

import functools

from launch.storage import filesystem
from launch.storage.checkpoint import Checkpoints
from paradigm import rng, trees
from paradigm.errors import UserError
from paradigm.step import init_state


def make_state(experiment, given=None, stats=None):
    """The TrainState at step 0; traceable, so that its shapes are known before it is made.

    given: parameters to start with, {name: array}; None for none. stats: the same of extra['batch_stats'].
    """
    e, params = experiment, None
    taken = lambda given: lambda name, x: given.get(name, x)
    if given is not None:
        params = trees.named_map(taken(given), e.objective.init(rng.key(e.seed, "params")))
    state = init_state(e.objective, e.optimizer, e.seed, e.ema, params)
    if stats:
        state.extra["batch_stats"] = trees.named_map(taken(stats), state.extra["batch_stats"])
    return state


def initial_state(program, checkpoints, init_from=None, init_partly_from=None):
    """What a call of `train` begins with: this run's newest checkpoint > init_from or init_partly_from > scratch.

    Args:
        program: launch.run.program.Program. checkpoints: this run's.
        init_from, init_partly_from: as `launch.run.loop.train` takes them.

    Returns:
        (function that makes the state, meta as a checkpoint has it, a line that says where the state is from).

    Raises:
        UserError: no checkpoint there, parameters that do not fit, or locked ones that nothing gives.
    """
    fresh = {"data": None, "progress": {"logged": 0, "evaluated": 0, "window": {}}}
    flag = f"--init_from={init_from}" if init_from else f"--init_partly_from={init_partly_from}"
    restored = checkpoints.restore(program.state)
    if restored is not None:
        state, meta = restored
        also = f" ({flag} is for new runs)" if init_from or init_partly_from else ""
        return lambda: state, meta, f"resumed from step {int(state.step)}{also}"
    objective = program.experiment.objective
    if init_from is None and init_partly_from is None:
        if objective.locked:
            raise UserError(
                f"{', '.join(objective.locked)} is locked, and without --init_partly_from=DIR it would stay as it was "
                "drawn: give the run that it comes from"
            )
        return program.init, fresh, "started from scratch"
    path, step = filesystem.as_path(init_from or init_partly_from), None
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        path, step = path.parent.parent, int(path.name)
    found = Checkpoints(path / "checkpoints").arrays(step, only=("params", "extra"))
    if found is None:
        raise UserError(f"{flag}: no checkpoint there; give a run directory or its checkpoints/STEP")
    step, arrays, _ = found
    where, matched = f"{flag} (step {step})", "the parameters"
    if init_from:
        given = dict(trees.named_leaves(trees.merge_strict(program.state.params, arrays["params"], where)))
    else:
        merged, report = trees.merge_partial(program.state.params, objective.adopt(arrays["params"]), where)
        given = {name: x for name, x in trees.named_leaves(merged) if name in report.matched}
        locked = tuple(f"{part}/" for part in objective.locked)
        if lost := [name for name in report.missing if name.startswith(locked)]:
            raise UserError(
                f"{where} lacks {lost[0]} and {len(lost) - 1} more of what is locked, or has them of other shapes: "
                "build the locked tower with the settings of that run"
            )
        matched = f"matching parameters ({report})"
    # Running statistics belong to the parameters that were trained with them.
    wanted = dict(trees.named_leaves(program.state.extra.get("batch_stats", {})))
    have = dict(trees.named_leaves(arrays.get("extra", {}).get("batch_stats", {})))
    stats = {name: x for name, x in have.items() if name in wanted and wanted[name].shape == x.shape}
    return functools.partial(program.init, given, stats), fresh, f"started from {matched} of {path} at step {step}"
