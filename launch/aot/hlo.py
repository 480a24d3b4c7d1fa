"""What a compiled program does in one run of it, read from its text: FLOPs, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once, which for a scan over layers is wrong by the number of layers.
Here a loop's body counts as often as its condition says, a branch as its dearest side, and a collective that an
asynchronous schedule repeats (start, step, done) once. The text is that of `compiled.as_text()`: a device's program.

All of it is an estimate: traffic within a fusion is free, what the compiler keeps on the chip (a memory space other
than 0 in its layouts) is free, and nothing is known of latency.
"""

import dataclasses
import functools
import itertools
import math
import re

import numpy as np

from launch.aot.hlo_text import dims_of, groups_of, leaves, memory_bytes, metadata, nbytes, parse

READER = 2  # one more whenever programs are read differently: docs/pods.json's rows say which of these has read them
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes that move nothing: names for what is there already, or counted where their computation is.
FREE = set(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "opt-barrier domain".split()
)
SHARED = "1"  # the channel of all that shard_map's functions write (jax's COLLECTIVE_CHANNEL_ID)


@dataclasses.dataclass(frozen=True)
class Collective:
    """payload: bytes of the whole array(s) that one device ends with or gives (the larger). devices: in a group.
    crosses: whether a group spans slices. times: in one run of the program. key: the same for what an asynchronous
    schedule writes several times and runs once. begins: whether it is the start of such a one, for which the
    program does not wait at once. line: as in Cost, of the first of so many arrays."""

    kind: str
    key: str
    payload: float
    devices: int
    crosses: bool
    times: float = 1.0
    begins: bool = False
    line: tuple = ("", "")
    arrays: int = 1

    @property
    def wire(self):
        """Bytes that each device sends, over all its runs, by the algorithms that are bandwidth-optimal on a ring."""
        share = {"all-reduce": 2 * (self.devices - 1) / self.devices, "collective-permute": 1.0}
        return self.times * self.payload * share.get(self.kind.split()[0], (self.devices - 1) / self.devices)


@dataclasses.dataclass
class Cost:
    """flops: of matrix products and convolutions, 2 a multiply-add. memory: bytes to and from the device's memory.
    lines: {(name of the operation, frame of the source): (flops, memory)}, what both are sums of; terms.py reads it."""

    flops: float = 0.0
    memory: float = 0.0
    collectives: tuple = ()
    lines: dict = dataclasses.field(default_factory=dict)

    def times(self, n):
        each = tuple(dataclasses.replace(c, times=c.times * n) for c in self.collectives)
        lines = {line: (flops * n, memory * n) for line, (flops, memory) in self.lines.items()}
        return Cost(self.flops * n, self.memory * n, each, lines)

    def add(self, other):
        self.flops += other.flops
        self.memory += other.memory
        self.collectives += other.collectives
        for line, (flops, memory) in other.lines.items():
            before = self.lines.get(line, (0.0, 0.0))
            self.lines[line] = before[0] + flops, before[1] + memory


def cost(text, devices_per_slice=None):
    """Cost of one run of a compiled program, on one device.

    Args:
        text: compiled.as_text().
        devices_per_slice: partitions that share the fast interconnect; None for all of them.
    """
    program = _Program(text, devices_per_slice)
    total = program.cost(program.entry, False)
    # An asynchronous collective stands in several computations under one channel: start, steps, done. It runs as often
    # as it starts; its steps may lie in a loop over other things.
    once = {}
    for c in total.collectives:
        if c.devices > 1 and (c.key not in once or (once[c.key].begins, once[c.key].times) < (c.begins, c.times)):
            once[c.key] = c
    return dataclasses.replace(total, collectives=tuple(once.values()))


def by_kind(collectives):
    """{kind: {"count", "bytes", "largest"}} of collectives: runs, payload of all of them, payload of the largest."""
    found = {}
    for c in collectives:
        entry = found.setdefault(c.kind, {"count": 0, "bytes": 0, "largest": 0})
        entry["count"] += round(c.times)
        entry["bytes"] += round(c.times * c.payload)
        entry["largest"] = max(entry["largest"], round(c.payload))
    return dict(sorted(found.items()))


class _Program:
    def __init__(self, text, devices_per_slice):
        self.computations, self.entry = parse(text)
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
        self.devices = math.prod(map(int, counts))
        self.devices_per_slice = devices_per_slice
        self._shapes = {c: {i.name: i.shape for i in body} for c, body in self.computations.items()}
        self._bodies = {c: {i.name: i for i in body} for c, body in self.computations.items()}
        self._costs = {}

    def cost(self, name, fused):
        """Of one run of a computation; within a fusion nothing goes to memory."""
        if (name, fused) not in self._costs:
            total = Cost()
            for instruction in self.computations[name]:
                total.add(self._one(name, instruction, fused))
            self._costs[name, fused] = total
        return self._costs[name, fused]

    def _one(self, where, i, fused):
        shape = lambda operand: self._shapes[where][operand]
        if i.opcode == "while":
            turn = Cost()
            for part in ("body", "condition"):
                turn.add(self.cost(i.attribute(rf"{part}=%?([\w.\-]+)"), fused))
            return turn.times(self._trips(i))
        if i.opcode == "conditional":
            sides = i.attribute(r"branch_computations=\{(.*?)\}")
            sides = sides or ",".join(re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", i.rest))
            costs = [self.cost(side.strip(" %"), fused) for side in sides.split(",")]
            return max(costs, key=lambda c: (c.flops, c.memory))
        own, called, line = Cost(), Cost(), None
        if i.opcode == "fusion":
            inside = self.cost(i.attribute(r"calls=%?([\w.\-]+)"), True)
            own = dataclasses.replace(inside)
            if inside.flops:  # its root may be no more than a conversion
                line = max(inside.lines, key=inside.lines.get)
        elif i.opcode == "call" or i.opcode == "async-start":
            called.add(self.cost(i.attribute(r"(?:to_apply|calls)=%?([\w.\-]+)"), fused))
        elif i.opcode == "dot":
            lhs = dims_of(shape(i.operands[0]))
            contracted = (i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",")
            own.flops = 2.0 * math.prod(dims_of(i.shape)) * math.prod(lhs[int(d)] for d in contracted if d)
        elif i.opcode == "convolution":
            own.flops = _convolution(i, *(dims_of(shape(operand)) for operand in i.operands[:2]))
        elif i.opcode.removesuffix("-start") in KINDS:
            own.collectives = (self._collective(where, i),)
        elif i.opcode == "custom-call" and (kernel := _splash(i, shape)):
            own.flops, own.memory = kernel
        elif i.opcode == "send" and "megascale" in i.rest:
            own.collectives = (self._between_slices(where, i),)
        if not fused:
            own.memory += self._traffic(where, i)
        own.lines = {line or self._line(where, i): (own.flops, own.memory)}
        called.add(own)
        return called

    def _line(self, where, i):
        """(op_name, frame) of an instruction's metadata. The frame is 'file:line', or an id in the module's table of
        stack frames. What the compiler made has none: it is its opcode, at the place of the nearest that feeds it."""
        found = metadata(i)
        if found[1]:
            return found
        near, seen = [i], {i.name}
        for feeder in itertools.islice(near, 16):  # grows as it is gone through: the nearest come first
            if (found := metadata(feeder))[1]:
                return f"{found[0].rpartition('/')[0]}/{i.opcode}", found[1]
            new = [name for name in feeder.operands if name in self._bodies[where] and name not in seen]
            seen.update(new)
            near += (self._bodies[where][name] for name in new)
        return i.opcode, ""

    def _trips(self, i):
        """How often a while loop turns: as XLA notes it, or by the bound that its counter, which starts at 0, is below
        and what a turn adds to it: 2 where a product goes around a ring of devices both ways."""
        if known := i.attribute(r'known_trip_count[^\d]*"?(\d+)'):
            return int(known)
        condition, body = (i.attribute(rf"{part}=%?([\w.\-]+)") for part in ("condition", "body"))
        bounds = [bound for c in self.computations[condition] if (bound := _constant(c)) is not None]
        return -(-max(bounds, default=1) // self._stride(condition, body))

    def _stride(self, condition, body):
        """What a turn of a loop adds to the counter that its condition compares; 1 where it is not to be seen."""
        compared = {name for c in self.computations[condition] if c.opcode == "compare" for name in c.operands}
        fields = [c for c in self.computations[condition] if c.opcode == "get-tuple-element" and c.name in compared]
        root = next(b for b in self.computations[body] if b.root)
        if len(fields) != 1 or root.opcode != "tuple":
            return 1
        inside = self._bodies[body]
        counter = inside[root.operands[int(fields[0].attribute(r"index=(\d+)"))]]
        added = [_constant(inside[name]) for name in counter.operands] if counter.opcode == "add" else []
        return next((step for step in added if step), 1)

    def _collective(self, where, i):
        kind = i.opcode.removesuffix("-start")
        groups = groups_of(i.rest)
        if not groups and not re.search(r"replica_groups=\{\}", i.rest):
            raise ValueError(f"{i.name}: cannot read which devices take part in {i.rest}")
        devices = len(groups[0]) if groups else self.devices
        payload = sum(nbytes(self._shapes[where][operand]) for operand in i.operands)
        if kind == "all-gather":
            payload *= devices
        if where.startswith("all-reduce-scatter"):  # as a TPU's compiler writes a reduce-scatter
            kind = "reduce-scatter"
        size = self.devices_per_slice
        crosses = bool(size) and any(len({member // size for member in group}) > 1 for group in groups)
        channel = None if kind == "collective-permute" else i.attribute(r"channel_id=(\d+)")  # permutes may share one
        begins, line = i.opcode.endswith("-start") or i.name in self._begun(where), self._line(where, i)
        key = f"{kind} of {line}" if channel == SHARED else channel or f"{where}/{i.name}"
        return Collective(kind, key, payload, devices, crosses, begins=begins, line=line, arrays=len(i.operands))

    def _begun(self, where):
        """Names of the collectives of a computation that start there and end elsewhere."""
        calls = (i for i in self.computations[where] if 'custom_call_target="AsyncCollectiveStart"' in i.rest)
        return {operand for call in calls for operand in call.operands}

    def _between_slices(self, where, i):
        """Several slices of a TPU: each chip hands its part of a collective to its host, which does the rest."""
        kind = (i.attribute(r'transfer_type="(\w+)"') or "ALL_REDUCE").lower().replace("_", "-")
        slices = len((i.attribute(r'megascale_target="\{([\d,]+)\}') or "0,1").split(","))
        payload = nbytes(self._shapes[where][i.operands[0]])
        line = self._line(where, i)
        return Collective(f"{kind} between slices", f"{where}/{i.name}", payload, slices, True, line=line)

    def _traffic(self, where, i):
        """Bytes that an instruction outside a fusion reads from memory and writes to it."""
        if i.opcode in FREE or i.opcode.endswith(("-done", "-update")) or i.opcode in ("send", "recv"):
            return 0
        shapes = [self._shapes[where][operand] for operand in i.operands if operand in self._shapes[where]]
        if i.opcode == "fusion":
            return self._fusion(i, shapes)
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * memory_bytes(i.shape)
        if i.opcode == "dynamic-update-slice":
            return 2 * memory_bytes(shapes[1])
        if i.opcode in ("copy-start", "slice-start"):  # (to, from, context) or ((from), to, context)
            ends = leaves(i.shape)[:2]
            least = min(size for size, _ in ends)
            return sum(least for _, on_chip in ends if not on_chip)
        return memory_bytes(i.shape) + sum(map(memory_bytes, shapes))

    def _fusion(self, i, shapes):
        """A fusion reads of an operand what it slices from it, and writes of a result what it updates of it. What an
        asynchronous collective is writing elsewhere meanwhile lies where it lies."""
        inside = i.attribute(r"calls=%?([\w.\-]+)")
        results, operands = self._in_place(i, inside)
        sizes = {n: size for n, size in enumerate(map(memory_bytes, shapes)) if size and n not in operands}
        total = sum(self._read(inside, name, sizes[n]) for n, name in self._parameters(inside) if n in sizes)
        ends = enumerate(leaves(i.shape))
        most = sum(size for n, (size, on_chip) in ends if n not in results and not on_chip)
        return total + min(self._written(inside, without=results), most)

    def _in_place(self, i, inside):
        """({positions of results}, {of operands}) of a fusion that hold what a collective that is under way reads and
        writes. They are counted once, in the fusion that begins it, which reads the one and writes the other anew."""
        if not any(b.opcode in KINDS for b in self.computations[inside]):
            return set(), set()
        pairs = i.attribute(r"output_to_operand_aliasing=\{(.*?\))\}") or ""
        pairs = [(int(result or 0), int(operand)) for result, operand in re.findall(r"\{(\d*)\}: \((\d+)", pairs)]
        begun = self._begun(inside)
        read = {operand for b in self.computations[inside] if b.name in begun for operand in b.operands}
        read = {n for n, name in self._parameters(inside) if name in read}
        return {result for result, _ in pairs}, {operand for _, operand in pairs} - read

    def _parameters(self, computation):
        """[(position, name)] of a computation's parameters."""
        found = (b for b in self.computations[computation] if b.opcode == "parameter")
        return [(int(re.match(r"\d+", b.rest)[0]), b.name) for b in found]

    def _read(self, computation, name, full):
        """Bytes read of `name`, which has `full`, by the instructions of a fusion and of the fusions within it."""
        parts = 0
        for user in self.computations[computation]:
            for position in (n for n, operand in enumerate(user.operands) if operand == name):
                if user.opcode == "bitcast":
                    parts += self._read(computation, user.name, full)
                elif user.opcode == "fusion":
                    inside = user.attribute(r"calls=%?([\w.\-]+)")
                    within = dict(self._parameters(inside))[position]
                    parts += self._read(inside, within, full)
                    if self._root(inside).name == within:  # handed on as it is
                        parts += self._read(computation, user.name, full)
                elif user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
                    parts += nbytes(user.shape)
                elif user.opcode != "dynamic-update-slice" or position:
                    return full
        return min(parts, full)

    def _root(self, computation, name=None):
        """The instruction of this name, None for the one that a computation results in, below the bitcasts of it."""
        body = self._bodies[computation]
        found = body[name] if name else next(b for b in body.values() if b.root)
        while found.opcode == "bitcast":
            found = body[found.operands[0]]
        return found

    def _written(self, computation, name=None, without=()):
        """Bytes that a fusion writes of an instruction's result; None is its root. without: positions in a tuple."""
        b = self._root(computation, name)
        if b.opcode == "tuple":
            return sum(self._written(computation, operand) for n, operand in enumerate(b.operands) if n not in without)
        if b.opcode == "fusion":
            return self._written(b.attribute(r"calls=%?([\w.\-]+)"), without=without)
        updated = b.operands[1] if b.opcode == "dynamic-update-slice" else b.name
        return nbytes(self._bodies[computation][updated].shape)


def _constant(i):
    """The whole number that an instruction is; None where it is none."""
    found = re.match(r"(\d+)\)", i.rest) if i.opcode == "constant" else None
    return found and int(found[1])


def _convolution(i, lhs, rhs):
    """FLOPs of a convolution. Taps that fall on padding or between dilated inputs cost nothing: a TPU's compiler writes
    products with several batch or contracted dims that way."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    result = dims_of(i.shape)
    spatial = sorted(c for c in left if c.isdigit())  # the window names no dim: it has them in this order
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", i.attribute(r"window=\{(.*?)\}") or ""))
    pick = lambda name, default: window[name].split("x") if name in window else [default] * len(spatial)
    pairs = 1
    for dim, size, stride, pad, spread, step in zip(
        spatial, pick("size", "1"), pick("stride", "1"), pick("pad", "0_0"), pick("lhs_dilate", "1"),
        pick("rhs_dilate", "1"),
    ):  # fmt: skip
        low = int(pad.split("_")[0])
        pairs *= _taps(
            lhs[left.index(dim)], result[out.index(dim)], int(size), int(stride), low, int(spread), int(step)
        )
    return 2.0 * pairs * result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]


@functools.cache
def _taps(inputs, outputs, size, stride, low, spread, step):
    """How many (output, tap) pairs of one dim meet an input."""
    at = np.arange(outputs)[:, None] * stride + np.arange(size)[None] * step - low
    return int(((at >= 0) & (at <= (inputs - 1) * spread) & (at % spread == 0)).sum())


# Matrix products [L, K] x [K, S] of each of splash attention's kernels, and which operands it reads again for each
# block of the others: keys and values, or queries and the gradient of the output (by place among those of floats).
SPLASH = {"fwd": (2, (1, 2)), "dq": (3, (1, 2)), "dkv": (4, (0, 4))}


def _splash(i, shape):
    """(FLOPs, bytes read beyond its operands once) of a call of Pallas' splash attention; None for other calls.

    Of what it does the compiler says nothing. paradigm/splash.py writes the share of blocks that it goes through into
    the name of the operation.
    """
    found = re.match(r"splash_mha_(fwd|dq|dkv)_", i.name)
    share = i.attribute(r"splash_share_([\d.]+)")
    if not found or share is None:
        return None
    products, again = SPLASH[found[1]]
    arrays = [shape(o) for o in i.operands if o and re.match(r"b?f\d+\[", shape(o))]  # rows go first, unless it is one
    (*batch, heads, length, width), (*_, source, _) = map(dims_of, arrays[:2])
    block = int(i.attribute(rf"block_{'q' if found[1] == 'dkv' else 'kv'}\D+(\d+)") or 512)
    turns = max(float(share) * (source if found[1] == "dkv" else length) / block - 1, 0)
    per_head = {n: nbytes(arrays[n]) * heads / dims_of(arrays[n])[-3] for n in again}  # a key's head serves several
    flops = 2.0 * products * math.prod(batch) * heads * length * source * width * float(share)
    return flops, turns * sum(per_head.values())
