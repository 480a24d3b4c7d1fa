"""What a run would cost, from shapes alone: parameters, bytes per device by kind, model FLOPs per step.

Nothing is computed and no data is read. A mesh with a size for every axis ('data:1,fsdp:64,tensor:4') needs none of its
devices: as many virtual CPU devices stand in for them, so a laptop can look at a pod's run.
"""

import math

import jax

from launch.aot import hlo
from launch.run.experiment import Experiment, warnings
from launch.run.mesh import make_mesh, parse_mesh
from launch.run.program import Program, step_memory
from paradigm import trees

ROUNDING = 0.02  # the formulas leave small terms out, and so may the compiler
MARK = " (above 1)"


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
    program = Program(experiment, mesh)
    state = program.state

    table = [("parameter", "shape", "dtype", "sharding", "count")]
    for tree, remark in ((state.params, ""), (state.frozen, " frozen")):
        for name, x in trees.named_leaves(tree):
            table.append((name, _list(x.shape), str(x.dtype), _list(x.sharding.spec) or "-", f"{x.size:,}{remark}"))
    total, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.all_params, state.params))
    devices = f"{mesh.size} {'device' if mesh.size == 1 else 'devices'} ({experiment.mesh})"
    lines = [
        *_columns(table),
        "",
        f"{total:,} parameters{_trained(trained, total)} on {devices}; each device and step:",
    ]

    head = "phase", "params", "frozen", "optimizer", "extra", "batch", "activations", "sum"
    table = [(*head, "model FLOPs of all", "as compiled", "ratio")]
    for phase, batch in program.batch.items():
        sizes = [*map(bytes_on_device, (state.params, state.frozen, state.opt_state, state.extra, batch))]
        compiled = program.compile(phase)
        sizes.append(step_memory(compiled)[1])
        flops = experiment.objective.flops(batch, state.frozen_modules)
        counted = mesh.size * hlo.cost(compiled.as_text()).flops
        table.append((phase, *map(readable, sizes), readable(sum(sizes)), f"{flops:.4g}", *_beside(flops, counted)))
    platform = mesh.devices.flat[0].platform
    lines += [
        *_columns(table),
        f"(activations: all that lives within a step, gradients too, as compiled for {platform})",
        "(as compiled: what all devices multiply, by the program's text: also what is padding, is computed twice or is "
        "the optimizer's. The ratio is the share that an MFU counts)",
    ]
    lines += program.attention_lines()
    if any(row[-1].endswith(MARK) for row in table):
        lines.append(
            "warning: a ratio above 1: the formula counts more than the program multiplies, as it does the taps of a "
            "convolution that fall on padding: an MFU by it is too high by as much"
        )
    lines += [f"warning: {line}" for line in warnings(experiment)]
    return "\n".join(lines)


def _beside(flops, counted):
    """(FLOPs as compiled, model FLOPs / these), as texts; more than all is marked."""
    if not counted:  # all products are calls of a library
        return "unknown", "-"
    return f"{counted:.4g}", f"{flops / counted:.3g}{MARK * (flops > counted * (1 + ROUNDING))}"


def _trained(trained, total):
    return "" if trained == total else f" ({trained:,} trained, {100 * trained / total:.3g} %)"


def bytes_on_device(tree) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def readable(size: float) -> str:
    power = min(int(math.log(max(size, 1), 1024)), 4)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _list(items) -> str:
    """'64, fsdp, -' of a shape or a PartitionSpec."""
    return ", ".join("+".join(x) if isinstance(x, tuple) else "-" if x is None else str(x) for x in items)


def _columns(rows) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
