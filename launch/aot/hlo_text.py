"""The text of a compiled program, read: computations and instructions, types, groups of devices, lines of source."""

import dataclasses
import math
import re

import numpy as np

SIZES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
ON_CHIP = re.compile(r"S\([1-9]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. shape: the type as written. operands: names. rest: arguments and attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple
    rest: str
    root: bool

    def attribute(self, pattern):
        found = re.search(pattern, self.rest)
        return found and found[1]


def parse(text):
    """({computation: [Instruction]}, name of the entry) of a module's text."""
    computations, entry, body = {}, None, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if header:
            body = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif body is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)):
            shape, rest = _type(found[3])
            opcode, _, rest = rest.partition("(")
            arguments = rest[: _closing("(" + rest) - 1]
            operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
            body.append(Instruction(found[2], shape, opcode.strip(), operands, rest, bool(found[1])))
        elif body and line.strip(" }"):  # attributes of a kernel that hold line breaks
            body[-1] = dataclasses.replace(body[-1], rest=body[-1].rest + line)
    return computations, entry


def metadata(i):
    """(op_name, frame), '' for what an instruction's metadata lack."""
    frame = i.attribute(r" stack_frame_id=(\d+)")
    if file := i.attribute(r' source_file="([^"]*)"'):
        frame = f"{file}:{i.attribute(r' source_line=([0-9]+)')}"
    name = i.attribute(r'metadata=\{[^{}]*op_name="([^"]*)"') or i.opcode
    if i.opcode == "dot":  # one that took a transposition in may bear its name
        name = re.sub(r"/transpose$", "/dot_general", name)
    return name, frame or ""


def _type(text):
    """'(f32[2], s32[]) add(...)' -> ('(f32[2], s32[])', 'add(...)')."""
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text):
    """The index of the bracket that closes the first character."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)


def leaves(shape):
    """[(bytes, whether it stays on the chip)] of a type."""
    found = []
    for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?", shape):
        size = SIZES.get(dtype) if dtype in SIZES else _width(dtype)
        count = math.prod(int(d) for d in dims.replace("<=", "").split(",") if d)
        found.append((count * size, bool(ON_CHIP.search(layout))))
    return found


def _width(dtype):
    """Bytes of 'f32', 's8', 'f8e4m3fn'."""
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) / 8 if found else 0


def nbytes(shape):
    return sum(size for size, _ in leaves(shape))


def memory_bytes(shape):
    """The bytes of a type that lie in the device's memory."""
    return sum(size for size, on_chip in leaves(shape) if not on_chip)


def dims_of(shape):
    return [int(d) for d in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if d]


def groups_of(rest):
    """The groups of partitions of a collective: lists of ids; [] where it names none."""
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return [list(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, tiles, order = (list(map(int, part.split(","))) if part else None for part in found.groups())
        return _iota(tiles, order).reshape(shape).tolist()
    if found := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", rest):
        axes = re.findall(r"'([\w.]+)'=(\d+)", found[1])
        named = re.findall(r"'([\w.]+)'", found[3])
        sizes = [int(size) for _, size in axes]
        inside = [n for n, (axis, _) in enumerate(axes) if axis in named]
        ids = _device_ids(found[2], math.prod(sizes)).reshape(sizes)
        ids = np.moveaxis(ids, inside, range(-len(inside), 0))
        return ids.reshape(-1, math.prod(sizes[n] for n in inside)).tolist()
    return []


def _iota(tiles, order):
    """0, 1, ... as an array of that shape, its axes then in that order (None: as they are)."""
    ids = np.arange(math.prod(tiles)).reshape(tiles)
    return ids.transpose(order) if order else ids


def _device_ids(text, count):
    """The order of a mesh's devices: None for 0, 1, ...; '3,1,2,0'; or '[4,64]T(1,0)', an array that is transposed."""
    if tiles := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$", text or ""):
        shape, order = (list(map(int, part.split(","))) if part else None for part in tiles.groups())
        return _iota(shape, order).ravel()
    return np.array(list(map(int, text.split(",")))) if text else np.arange(count)
