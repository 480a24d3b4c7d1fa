"""Which tensor of a file is which of our parameters, and how one becomes the other.

A Leaf names a tensor and our leaves that it holds; its `how` has, for these leaves without the layer axis,

    shape(shapes) -> the tensor's      pack(arrays) -> tensor      unpack(tensor, shapes) -> arrays, pack's inverse
"""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Table:
    """Alike on both sides, but for so many axes of 1 in front in the file; -1: one in front of ours, not the file's."""

    lead: int = 0

    def shape(self, ours):
        return (1,) * self.lead + tuple(ours[0][max(0, -self.lead) :])

    def pack(self, parts):
        return parts[0].reshape(self.shape([parts[0].shape]))

    def unpack(self, tensor, shapes):
        return [tensor.reshape(shapes[0])]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A linear map; several of ours lie side by side in its outputs.

    inputs: leading axes of our kernels that are inputs; 0 for a vector. torch: kept as torch's Linear does, [out, in].
    """

    inputs: int = 1
    torch: bool = True

    def shape(self, ours):
        rows, columns = math.prod(ours[0][: self.inputs]), sum(math.prod(s[self.inputs :]) for s in ours)
        if self.inputs == 0:
            return (columns,)
        return (columns, rows) if self.torch else (rows, columns)

    def pack(self, parts):
        rows = math.prod(parts[0].shape[: self.inputs])
        flat = [x.reshape(rows, -1) for x in parts]  # [in, out]
        flat = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        return flat[0] if self.inputs == 0 else flat.T if self.torch else flat

    def unpack(self, tensor, shapes):
        flat = tensor[None] if self.inputs == 0 else tensor.T if self.torch else tensor
        ends = np.cumsum([math.prod(s[self.inputs :]) for s in shapes])[:-1]
        return [x.reshape(s) for x, s in zip(np.split(flat, ends, axis=1), shapes, strict=True)]


Vector = Kernel(0)


@dataclasses.dataclass(frozen=True)
class Patches:
    """A patch embedding: ours [size * size * C, D], the file's [D, C, size, size]."""

    size: int

    def shape(self, ours):
        return (ours[0][1], ours[0][0] // self.size**2, self.size, self.size)

    def pack(self, parts):
        return parts[0].reshape(self.size, self.size, -1, parts[0].shape[1]).transpose(3, 2, 0, 1)

    def unpack(self, tensor, shapes):
        return [tensor.transpose(2, 3, 1, 0).reshape(shapes[0])]


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """What the tensor must be, where no parameter of ours holds it. what: it in words, and what helps where it is
    something else."""

    value: Any
    what: str

    def shape(self, ours):
        return self.value.shape

    def pack(self, parts):
        return self.value

    def unpack(self, tensor, shapes):
        return []


@dataclasses.dataclass(frozen=True)
class Absent:
    """No tensor of the file: our leaf is this value, and nothing reads it."""

    value: float


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a file, and its place in our tree.

    name: the tensor's. paths: our leaf, or those that the tensor holds. how: see above. layer: index on the stacked
    axis, or None. aliases: other names of the tensor in released files. missing: what ours is where a file lacks it;
    None: a file must have it.
    """

    name: str
    paths: tuple
    how: Any = Table()
    layer: int | None = None
    aliases: tuple = ()
    missing: float | None = None


# ---- Rows (tensor, our paths in one string, how), of which the tables are made ---------------------------------------


def dense(theirs, ours, inputs=1, torch=True, bias=True):
    """A linear map, or several of ours in one tensor."""
    paths = lambda kind: " ".join(f"{name}/{kind}" for name in ours.split())
    rows = [(f"{theirs}.weight", paths("kernel"), Kernel(inputs, torch))]
    return [*rows, (f"{theirs}.bias", paths("bias"), Vector)] if bias else rows


def norm(theirs, ours, bias=True):
    rows = [(f"{theirs}.weight", f"{ours}/scale", Vector)]
    return [*rows, (f"{theirs}.bias", f"{ours}/bias", Vector)] if bias else rows


def plain(rows):
    """Leaves from rows."""
    return [Leaf(name, tuple(paths.split()), how) for name, paths, how in rows]


def stacked(count, theirs, ours, rows, also=None):
    """Leaves of so many layers, from rows below `theirs` (with {} for the layer; `also`: another name in some files)
    and below our Stack `ours`."""
    return [
        Leaf(
            f"{theirs.format(n)}.{name}",
            tuple(f"{ours}/layers/{path}" for path in paths.split()),
            how,
            n,
            (f"{also.format(n)}.{name}",) if also else (),
        )
        for n in range(count)
        for name, paths, how in rows
    ]
