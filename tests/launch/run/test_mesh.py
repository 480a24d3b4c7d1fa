import math

import jax
import numpy as np
import pytest

from launch.run.mesh import closed_path, make_mesh, mesh_shape, parse_mesh, slice_count
from paradigm.errors import UserError


def test_parse():
    assert parse_mesh("data:1,fsdp:-1,tensor:1") == {"data": 1, "fsdp": -1, "tensor": 1}
    assert list(parse_mesh(" tensor:2 , data:-1")) == ["data", "fsdp", "tensor"]
    assert parse_mesh("tensor:2") == {"data": 1, "fsdp": 1, "tensor": 2}
    assert parse_mesh("context:4,fsdp:-1") == {"data": 1, "fsdp": -1, "tensor": 1, "context": 4}


@pytest.mark.parametrize("spec, text", [
    ("tensro:2", "mesh 'tensro:2': unknown axis 'tensro', did you mean 'tensor'?; the axes are data, fsdp, tensor"),
    ("model:2", "unknown axis 'model'; the axes are data, fsdp, tensor"),
    ("data:2,data:4", "axis 'data' is given twice"),
    ("data", "axis 'data' needs a size that is a positive number or -1, as in 'data:2', not 'data'"),
    ("data:0", "axis 'data' needs a size"),
    ("data:-2", "axis 'data' needs a size"),
    ("data:two", "axis 'data' needs a size"),
    ("data:-1,fsdp:-1", "two axes are -1; at most one"),
])  # fmt: skip
def test_parse_errors(spec, text):
    with pytest.raises(UserError) as error:
        parse_mesh(spec)
    assert text in str(error.value)


def test_shape_fills_the_devices():
    assert mesh_shape("data:2,fsdp:-1,tensor:2", 8) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(
        UserError, match="mesh 'data:3,fsdp:-1' does not divide the devices: its fixed axes take 3 of 8"
    ):
        mesh_shape("data:3,fsdp:-1", 8)
    with pytest.raises(UserError, match="mesh 'data:2,tensor:2' uses 4 of 8 devices .* set one axis to -1"):
        mesh_shape("data:2,tensor:2", 8)
    with pytest.raises(UserError, match="mesh 'fsdp:16' does not divide the devices: its fixed axes take 16 of 8"):
        mesh_shape("fsdp:16", 8)


def test_mesh_has_all_axes_and_leaves_placement_to_the_compiler():
    mesh = make_mesh("fsdp:-1,tensor:2")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert make_mesh("fsdp:2", jax.devices()[:2]).devices.size == 2


class Device:
    """As much of a TPU chip as a mesh wants to know."""

    platform = device_kind = "tpu"

    def __init__(self, number, slices):
        self.id, self.slice_index, self.core_on_chip = number, number % slices, 0
        self.coords = (number // slices % 2, number // slices // 2, 0)
        self.process_index = self.slice_index


def test_data_spans_the_slices():
    """The rows of data lie in one slice each, whatever the order of the devices; the other axes never leave it."""
    mesh = make_mesh("data:2,fsdp:-1,tensor:2", [Device(n, 2) for n in range(8)])
    slices = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2} and slices in (
        [[0] * 4, [1] * 4],
        [[1] * 4, [0] * 4],
    )
    mesh = make_mesh("data:2,context:4", [Device(n, 2) for n in range(8)])
    assert mesh.axis_names == ("data", "fsdp", "tensor", "context") and mesh.devices.shape == (2, 1, 1, 4)
    mesh = make_mesh("data:4,fsdp:2", [Device(n, 2) for n in range(8)])
    assert [len({device.slice_index for device in row.flat}) for row in mesh.devices] == [1] * 4
    with pytest.raises(UserError, match="are 2 slices, which only data may span, and data:1 does not divide over them"):
        make_mesh("fsdp:-1", [Device(n, 2) for n in range(8)])


class Chip:
    platform = device_kind = "tpu"
    slice_index = core_on_chip = process_index = 0

    def __init__(self, *coords):
        self.coords = coords


def box(*sides):
    return [Chip(*at) for at in np.ndindex(*sides)]


@pytest.mark.parametrize(
    "sides", [(2, 2, 1), (2, 4, 1), (3, 4, 1), (4, 3, 1), (16, 16, 1), (4, 4, 4), (3, 2, 5), (2, 2, 2)]
)
@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_one_axis_goes_around_the_slice_from_neighbour_to_neighbour(sides, axis):
    mesh = make_mesh(f"{axis}:-1", box(*sides))
    coords = np.array([chip.coords for chip in mesh.devices.flat])
    assert len({tuple(at) for at in coords}) == math.prod(sides) == mesh.shape[axis]
    steps = np.abs(coords - np.roll(coords, 1, 0)).sum(1)
    assert steps.max() == 1, steps


def test_chips_without_a_closed_path_are_left_to_jax():
    assert closed_path(box(3, 3, 1)) is closed_path(box(4, 1, 1)) is closed_path(box(2, 2, 1)[1:]) is None
    assert closed_path([Chip(0, 0, 0), *box(2, 2, 1)]) is None  # two devices of one chip
    assert closed_path(jax.devices()) is None


def test_slices_are_counted():
    assert slice_count([Device(n, 3) for n in range(6)]) == 3
    assert slice_count(jax.devices()) == 1
