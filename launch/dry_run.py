"""What a run would cost, from shapes alone: parameters, bytes per device by kind, model FLOPs per step.

Nothing is computed and no data is read. A mesh with a size for every axis ('data:1,fsdp:64,tensor:4') needs none of its
devices: as many virtual CPU devices stand in for them, so a laptop can look at a pod's run.
"""

import math
from typing import Any

import jax

from launch.experiment import Experiment
from launch.mesh import make_mesh, parse_mesh
from paradigm import partition, trees
from paradigm.step import init_state, make_train_step


def stand_in_devices(mesh: str) -> int:
    """The number of devices to plan for; virtual CPU ones replace the real ones when the mesh wants a fixed number.

    Call it before anything uses a device.
    """
    sizes = parse_mesh(mesh).values()
    if -1 in sizes:
        return jax.device_count()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", math.prod(sizes))
    return math.prod(sizes)


def report(experiment: Experiment) -> str:
    """The parameter table, then bytes per device and FLOPs per step for each phase of the objective."""
    mesh = make_mesh(experiment.mesh)
    objective = experiment.objective
    state = jax.eval_shape(lambda: init_state(objective, experiment.optimizer, experiment.seed, experiment.ema))
    shardings = partition.state_shardings(state, objective.partition_rules, mesh)

    table = [("parameter", "shape", "dtype", "sharding", "count")]
    for (name, leaf), sharding in zip(trees.named_leaves(state.params), jax.tree.leaves(shardings.params)):
        table.append((name, _list(leaf.shape), str(leaf.dtype), _list(sharding.spec), f"{leaf.size:,}"))
    total = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    lines = [*_columns(table), "", f"{total:,} parameters on {_list(f'{k}:{v}' for k, v in mesh.shape.items())}", ""]

    table = [("phase", "params", "optimizer", "extra", "batch", "activations*", "sum", "model FLOPs")]
    for phase in objective.phases():
        batch = objective.batch_spec(experiment.batch_size, phase)
        batch_shardings = partition.batch_shardings(batch, mesh)
        sizes = [
            _bytes(state.params, shardings.params),
            _bytes(state.opt_state, shardings.opt_state),
            _bytes(state.extra, shardings.extra),
            _bytes(batch, batch_shardings),
            _temporaries(experiment, phase, mesh, (state, batch), (shardings, batch_shardings)),
        ]
        table.append((phase, *map(_readable, sizes), _readable(sum(sizes)), f"{objective.flops(batch):.4g}"))
    lines += ["per device and step:", *_columns(table)]
    lines += [f"* gradients among them; what {mesh.devices.flat[0].platform} compiles to, other devices differ"]
    return "\n".join(lines)


def _temporaries(experiment, phase, mesh, arguments, shardings) -> int:
    """Bytes per device of what lives only within a step, from the compiled program."""
    step = make_train_step(
        experiment.objective,
        experiment.optimizer,
        seed=experiment.seed,
        phase=phase,
        microbatches=experiment.microbatches,
        clip=experiment.clip,
        ema=experiment.ema,
    )
    jitted = jax.jit(step, in_shardings=shardings, out_shardings=(shardings[0], None), donate_argnums=0)
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def _bytes(tree: Any, shardings: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)


def _readable(size: float) -> str:
    power = min(int(math.log(max(size, 1), 1024)), 4)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _list(items) -> str:
    name = lambda x: "x".join(x) if isinstance(x, tuple) else "-" if x is None else str(x)
    return ", ".join(map(name, items))


def _columns(rows) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
