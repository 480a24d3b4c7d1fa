"""What a pre-trained model still knows after it was adapted: the run's own validation, on another run's model.

The objective, its data and its evaluators are those of pre-training; the parameters are the adapted run's, entered as
it enters them (a LoRA, a prompt), and where it has none, as of a decoder that stayed behind, those of pre-training. So
is what the objective has gathered beside them, a queue or a centre.
"""

import dataclasses

import jax.numpy as jnp

from launch.run.initial import evaluated, running_stats, stats_for
from paradigm import trees
from paradigm.errors import UserError
from paradigm.objective import BODIES


def adapted_as(experiment, other):
    """The experiment under the adaptation of another one; under none where that adds no leaves."""
    adapt = other.objective.adapt
    adapt = adapt if adapt is not None and adapt.adds else None
    return dataclasses.replace(experiment, adapt=adapt, objective=experiment.objective.adapted(adapt))


def adapted_state(program, checkpoints, other, where, step=None):
    """(the TrainState, the step) of a run's newest checkpoint, or `step`, with the parameters of one adapted from it.

    Args:
        program: the run's, as `adapted_as` has it. checkpoints, other: of the run, and of the one adapted from it.
        where: the other one, for messages.

    Raises:
        UserError: no checkpoint; a model that is another one.
    """
    own = checkpoints.needed(checkpoints.arrays(step, ("params", "extra")))
    new = other.needed(other.arrays(None, ("params", "extra")))
    wanted = dict(trees.named_leaves(program.state.all_params))
    given, found = evaluated(own[1]), evaluated(new[1])
    given = {name: x for name, x in given.items() if name in wanted}
    fits = {name: x for name, x in found.items() if name in wanted and x.shape == wanted[name].shape}
    bodies = [name for name in wanted if name.split("/")[0] in BODIES]
    if lost := [name for name in bodies if name not in fits]:
        has = f"of shape {found[lost[0]].shape}" if lost[0] in found else "not there"
        raise UserError(
            f"{where} was not adapted from this run: {lost[0]} of shape {wanted[lost[0]].shape} is {has}. Give a run "
            "that was, or settings of the model that it has beside (--gin_param)"
        )
    own_stats, new_stats = (running_stats(arrays.get("extra", {})) for _, arrays, _ in (own, new))
    leaves = trees.named_leaves(own[1].get("extra", {}))  # a queue, a centre, counts: a teacher begins as the model
    kept = {name: x for name, x in leaves if not {"teacher", "ema"} & set(name.split("/"))}
    stats = kept | own_stats | stats_for(own_stats, new_stats)
    as_wanted = {name: jnp.asarray(x, wanted[name].dtype) for name, x in (given | fits).items()}
    return program.init(as_wanted, stats), own[0]
