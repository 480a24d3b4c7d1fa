"""What is compiled: an experiment on a mesh, known from shapes alone before there is any data or any number.

Abstract state -> shardings -> executables, one for each phase of the objective.
"""

import functools
import threading
from concurrent.futures import Future

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch import host
from paradigm import partition, rng, trees
from paradigm.errors import UserError
from paradigm.step import init_state, make_train_step


class Program:
    """The shapes, shardings and executables of an experiment on a mesh.

    state: the TrainState as ShapeDtypeStructs with shardings. batch[phase]: the same of a batch.
    """

    def __init__(self, experiment, mesh):
        self.experiment, self.mesh = experiment, mesh
        objective = experiment.objective
        shapes = jax.eval_shape(self._init)
        self.shardings = partition.state_shardings(shapes, objective.partition_rules, mesh)
        self.state = _placed(shapes, self.shardings)
        specs = {phase: objective.batch_spec(experiment.batch_size, phase) for phase in objective.phases()}
        self.batch = {phase: _placed(spec, partition.batch_shardings(spec, mesh)) for phase, spec in specs.items()}

    def _init(self, given=None, stats=None):
        e, params = self.experiment, None
        taken = lambda given: lambda name, x: given.get(name, x)
        if given is not None:
            params = trees.named_map(taken(given), e.objective.init(rng.key(e.seed, "params")))
        state = init_state(e.objective, e.optimizer, e.seed, e.ema, params)
        if stats:
            state.extra["batch_stats"] = trees.named_map(taken(stats), state.extra["batch_stats"])
        return state

    def init(self, given=None, stats=None):
        """The state at step 0, made where it will live.

        given: parameters to start with, {name: array}; None for none. stats: the same of extra['batch_stats'].
        """
        with jax.set_mesh(self.mesh):
            if given is None:
                return jax.jit(self._init, out_shardings=self.shardings)()
            places = dict(trees.named_leaves(self.shardings.params))
            given = jax.device_put(given, {name: places[name] for name in given})
            return jax.jit(self._init, out_shardings=self.shardings)(given, stats or {})

    def compile(self, phase):
        """step(state, batch) -> (state, metrics), for arrays as `state` and `batch[phase]` say; donates the state."""
        e = self.experiment
        step = make_train_step(
            e.objective, e.optimizer, seed=e.seed, phase=phase, microbatches=e.microbatches, clip=e.clip, ema=e.ema
        )
        with jax.set_mesh(self.mesh):
            jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, NamedSharding(self.mesh, P())))
            options = host.compiler_options(self.mesh.devices.flat[0].platform)
            return jitted.lower(self.state, self.batch[phase]).compile(options)

    def rows(self):
        """The rows of the global batch that this process's devices hold, ascending: all that it has to read.

        A slice, or a list of ints: the mesh lays its axes along the links of a torus, where the chips of one host are
        seldom neighbours in the batch.
        """
        held = self._held
        first, last = int(held[0]), int(held[-1]) + 1
        return slice(first, last) if last - first == len(held) else held.tolist()

    @functools.cached_property
    def _held(self):
        size = self.experiment.batch_size
        spans = NamedSharding(self.mesh, P(partition.BATCH)).addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[span] for (span,) in spans]))

    def put(self, batch, phase):
        """This process's rows of a batch as global arrays on the mesh."""
        spec = self.batch[phase]
        if batch.keys() != spec.keys():
            raise UserError(
                f"{type(self.experiment.objective).__name__}.preprocess gives {sorted(batch)} and batch_spec says "
                f"{sorted(spec)}: make them agree"
            )

        def whole(mine, s):
            def part(index):  # a device's rows, all of which are here, one after the other
                first, last, _ = index[0].indices(s.shape[0])
                at = np.searchsorted(self._held, first)
                return mine[at : at + last - first]

            return jax.make_array_from_callback(s.shape, s.sharding, part)

        return {name: whole(np.asarray(batch[name], s.dtype), s) for name, s in spec.items()}


class Background:
    """Calls a function on each of several arguments in a thread, in order, while others work: results by argument."""

    def __init__(self, fn, arguments):
        self._results, self._stopped = {a: Future() for a in arguments}, False
        self._thread = threading.Thread(target=self._run, args=(fn,), daemon=True)
        self._thread.start()

    def _run(self, fn):
        for argument, future in self._results.items():
            if self._stopped:
                return
            try:
                future.set_result(fn(argument))
            except BaseException as error:  # it is raised where the result is asked for
                future.set_exception(error)

    def __getitem__(self, argument):
        return self._results[argument].result()

    def close(self):
        """Waits for what is under way: a compiler must not be left running when the process ends."""
        self._stopped = True
        self._thread.join()


def _placed(shapes, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
