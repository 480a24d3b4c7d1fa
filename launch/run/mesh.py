"""The device mesh: 'data:1,fsdp:-1,tensor:1' -> jax.sharding.Mesh.

Three axes, always all three and always in this order. `data` replicates the parameters, `fsdp` shards them, `tensor`
splits heads, hidden units and vocabulary. The rows of a batch are spread over data and fsdp. A fourth, `context`, is
there where it is named: it cuts long rows of tokens along their length (paradigm/context.py).

Devices of several TPU slices are joined by the slow data-center network. There `data` spans the slices, so that only
the gradients cross it, once a step.

Where one axis takes a whole slice, its chips follow a closed path along the links of the torus: what goes around a ring
of devices (paradigm/contrastive.py) then always goes to a neighbour, and the compiler overlaps it with the products. In
row-major order, whose ends of rows are far apart, it does not, and each turn waits (seen from 8 x 8 chips on).
"""

import difflib
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from paradigm.errors import UserError
from paradigm.partition import AXES, CONTEXT


def parse_mesh(spec: str) -> dict[str, int]:
    """'data:1,fsdp:-1,tensor:1' -> {'data': 1, 'fsdp': -1, 'tensor': 1}.

    An axis that is left out is 1, but context, which is then not there; at most one may be -1, which means every device
    that the others leave.
    Raises UserError for an unknown, repeated or ill-sized axis.
    """
    sizes = {}
    for part in filter(None, (p.strip() for p in spec.split(","))):
        name, colon, size = (s.strip() for s in part.partition(":"))
        if name not in (*AXES, CONTEXT):
            near = difflib.get_close_matches(name, (*AXES, CONTEXT), 1)
            raise UserError(
                f"mesh '{spec}': unknown axis '{name}'{f', did you mean {near[0]!r}?' if near else ''}; "
                f"the axes are {', '.join((*AXES, CONTEXT))}, as in 'data:1,fsdp:-1,tensor:1'"
            )
        if name in sizes:
            raise UserError(f"mesh '{spec}': axis '{name}' is given twice; give it once")
        if not colon or not (size == "-1" or size.isdecimal() and int(size) > 0):
            raise UserError(
                f"mesh '{spec}': axis '{name}' needs a size that is a positive number or -1, as in '{name}:2', "
                f"not '{part}'"
            )
        sizes[name] = int(size)
    if sum(size == -1 for size in sizes.values()) > 1:
        raise UserError(f"mesh '{spec}': two axes are -1; at most one can take the devices that the others leave")
    return {axis: sizes.get(axis, 1) for axis in (*AXES, CONTEXT) if axis in (*AXES, *sizes)}


def mesh_shape(spec: str, device_count: int) -> dict[str, int]:
    """The mesh's axis sizes on this many devices, -1 filled in. Raises UserError when they do not fill the devices."""
    sizes = parse_mesh(spec)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if device_count % fixed:
        raise UserError(
            f"mesh '{spec}' does not divide the devices: its fixed axes take {fixed} of {device_count} devices; "
            f"choose sizes whose product divides {device_count}"
        )
    sizes = {axis: device_count // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != device_count:
        raise UserError(
            f"mesh '{spec}' uses {fixed} of {device_count} devices and would leave the others idle; "
            "set one axis to -1 to use them all"
        )
    return sizes


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of `spec` over `devices` (default: all). Axes are Auto: the compiler places what nobody constrains.

    Raises:
        UserError: the axes do not fill the devices, or data does not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    names, shape = zip(*mesh_shape(spec, len(devices)).items())
    slices = slice_count(devices)
    if shape[0] % slices:
        raise UserError(
            f"mesh '{spec}': the devices are {slices} slices, which only data may span, and data:{shape[0]} does not "
            f"divide over them; set data to a multiple of {slices}"
        )
    if slices > 1:
        inside = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, *(1,) * (len(shape) - 1)), devices=devices, allow_split_physical_axes=True
        )
    elif max(shape) == len(devices) and (path := closed_path(devices)):
        grid = np.array(path).reshape(shape)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def closed_path(devices: Sequence[jax.Device]) -> list[jax.Device] | None:
    """The chips of one TPU slice, each linked to the one before it and the last to the first.

    None for devices that are no box of chips with one device each, or a box without such a path (all sides odd, or one
    row of chips).
    """
    if devices[0].platform != "tpu":
        return None
    chips = {tuple(device.coords): device for device in devices}
    sides = [1 + max(axis) for axis in zip(*chips)]
    if not len(chips) == len(devices) == math.prod(sides):
        return None
    # Two sides make a ring, and that ring and the third another, as if it were a side: no link of it is left out but
    # the last. An even side comes first, for the path goes along the others in turns and has to come back.
    order = sorted((axis for axis, side in enumerate(sides) if side > 1), key=lambda axis: sides[axis] % 2)
    if len(order) < 2 or sides[order[0]] % 2:
        return None
    path = [(n,) for n in range(sides[order[0]])]
    for axis in order[1:]:
        around = [(*at, 0) for at in path]  # the first row, and back in turns over the rest
        for turn, at in enumerate(reversed(path)):
            across = range(1, sides[axis])
            around += [(*at, n) for n in (across if turn % 2 == 0 else reversed(across))]
        path = around
    places = [dict(zip(order, at)) for at in path]
    return [chips[tuple(place.get(axis, 0) for axis in range(len(sides)))] for place in places]


def slice_count(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices the devices belong to; 1 for devices that know no slices."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})
