"""What is compiled: an experiment on a mesh, known from shapes alone before there is any data or any number.

Abstract state -> shardings -> executables, one for each phase of the objective.
"""

import contextlib
import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.run import host
from launch.run.initial import make_state
from paradigm import attention_kernels, partition, trees
from paradigm.errors import UserError
from paradigm.objective import rows_spec
from paradigm.step import make_train_step


class Program:
    """The shapes, shardings and executables of an experiment on a mesh.

    state: the TrainState as ShapeDtypeStructs with shardings. batch[phase]: the same of a batch. attention[phase]: once
    it is compiled, {"kernel: why": calls} of paradigm.attention_kernels.
    """

    def __init__(self, experiment, mesh):
        self.experiment, self.mesh, self.attention = experiment, mesh, {}
        objective = experiment.objective
        partition.check_context(objective, mesh.shape.get(partition.CONTEXT, 1))
        shapes = jax.eval_shape(lambda: make_state(experiment))
        self.shardings = partition.state_shardings(shapes, objective.all_partition_rules, mesh)
        self.state = _placed(shapes, self.shardings)
        specs = {phase: objective.batch_spec(experiment.batch_size, phase) for phase in objective.phases()}
        rows = rows_spec(experiment.batch_size)
        if not all(rows.items() <= spec.items() for spec in specs.values()):
            raise UserError(
                f"{type(objective).__name__}.batch_spec must hold {', '.join(rows)}: add **rows_spec(batch_size)"
            )
        lying = lambda spec: partition.batch_shardings(spec, mesh, objective.context_length)
        self.batch = {phase: _placed(spec, lying(spec)) for phase, spec in specs.items()}

    @contextlib.contextmanager
    def context(self):
        """On the mesh, and with the attention of the experiment; yields which kernels are picked, as they are."""
        with jax.set_mesh(self.mesh), attention_kernels.use(self.experiment.attention) as picked:
            yield picked

    def init(self, given=None, stats=None):
        """The state at step 0, made where it will live; `given` and `stats` as `make_state` takes them."""
        make = functools.partial(make_state, self.experiment)
        with self.context():
            if given is None:
                return jax.jit(make, out_shardings=self.shardings)()
            places = dict(trees.named_leaves(self.shardings.all_params))
            given = jax.device_put(given, {name: places[name] for name in given})
            return jax.jit(make, out_shardings=self.shardings)(given, stats or {})

    def compile(self, phase):
        """step(state, batch) -> (state, metrics), for arrays as `state` and `batch[phase]` say; donates the state."""
        e = self.experiment
        step = make_train_step(
            e.objective, e.optimizer, seed=e.seed, phase=phase, microbatches=e.microbatches, clip=e.clip, ema=e.ema
        )
        with self.context() as self.attention[phase]:
            jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, NamedSharding(self.mesh, P())))
            options = host.compiler_options(self.mesh.devices.flat[0].platform)
            return jitted.lower(self.state, self.batch[phase]).compile(options)

    def attention_lines(self):
        """What computes the attention of each phase that has been compiled, and why; none where there is no attention.

        The kernels' names and reasons are those of paradigm.attention_kernels.pick.
        """
        several = len(self.batch) > 1
        return [
            f"attention{f' of {phase}' if several else ''}: {'; '.join(sorted(picked))}"
            for phase, picked in self.attention.items()
            if picked
        ]

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

        for name, s in spec.items():
            own, shape = np.asarray(batch[name]), [len(self._held), *s.shape[1:]]
            if [*own.shape] != shape or not np.can_cast(own.dtype, s.dtype, "same_kind"):
                raise UserError(
                    f"{type(self.experiment.objective).__name__}.preprocess gives {name!r} as {own.dtype} "
                    f"{[*own.shape[1:]]} and batch_spec says {np.dtype(s.dtype)} {shape[1:]}: make them agree"
                )

        def whole(mine, s):
            def part(index):  # a device's rows, all of which are here, one after the other
                first, last, _ = index[0].indices(s.shape[0])
                at = np.searchsorted(self._held, first)
                return mine[at : at + last - first][:, *index[1:]]

            return jax.make_array_from_callback(s.shape, s.sharding, part)

        return {name: whole(np.asarray(batch[name], s.dtype), s) for name, s in spec.items()}


def step_memory(compiled):
    """(arguments, all else): bytes that one device holds at most while it runs a compiled step.

    Arguments are state and batch; all else is what lives within the step, and results that take no argument's place.
    """
    memory = compiled.memory_analysis()
    left = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes + left


def _placed(shapes, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
