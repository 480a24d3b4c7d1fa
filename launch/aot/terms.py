"""The terms that a compiled step's time goes to, by what they are called and the source line that makes them.

A term is all that one operation of one module does in a step, its forward pass, its backward pass and what is computed
again between them: `decoder/layers/mlp/up dot_general`. A collective is a term of its own. Names are from the program's
metadata, times are a roofline's, term by term: so they add up to more than a step in which they overlap.
"""

import contextlib
import dataclasses
import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).parents[2]
PASSES = ("forward", "backward", "recomputed")
# Components of an operation's name that say how jax came to it and not where it stands.
PLUMBING = set(
    "while body cond closed_call checkpoint rematted_computation shard_map core_call custom_vjp_call eval_jaxpr".split()
)


@contextlib.contextmanager
def as_named_here():
    """Programs compiled meanwhile bear the names and lines of this code. Else the compilation cache may give one that
    other code has left there, the same in all that it computes."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


@dataclasses.dataclass
class Term:
    """name: 'module/path operation'. source: 'file:line', '' where the compiler says none. flops, memory and sent:
    bytes, by one device in a step. seconds: {pass: seconds}. bound: the resource of the largest part of these."""

    name: str
    source: str
    flops: float = 0.0
    memory: float = 0.0
    sent: float = 0.0
    seconds: dict = dataclasses.field(default_factory=dict)
    bounds: dict = dataclasses.field(default_factory=dict)

    @property
    def total(self):
        return sum(self.seconds.values())

    def add(self, turn, needs, flops=0.0, memory=0.0, sent=0.0):
        """What it does in one pass; needs: {resource: seconds}."""
        bound = max(needs, key=needs.get)
        self.flops, self.memory, self.sent = self.flops + flops, self.memory + memory, self.sent + sent
        self.seconds[turn] = self.seconds.get(turn, 0.0) + needs[bound]
        self.bounds[bound] = self.bounds.get(bound, 0.0) + needs[bound]

    def as_json(self, of):
        """share: of the sum `of` over all terms."""
        short = lambda x: float(f"{x:.4g}")
        return {
            "term": self.name,
            "source": self.source,
            "seconds": short(self.total),
            "share": short(self.total / of),
            "bound": max(self.bounds, key=self.bounds.get),
            "passes": {turn: short(self.seconds[turn]) for turn in PASSES if turn in self.seconds},
            "flops": self.flops,
            "memory": self.memory,
            "sent": self.sent,
        }


def dearest(cost, text, chip, count=5):
    """The `count` terms that need the most time, first the dearest, as dicts.

    Args:
        cost: launch.aot.hlo.Cost of the program. text: the program's, for its table of stack frames.
        chip: launch.aot.topology.Chip.
    """
    sources, found = _Sources(text), {}

    def term(line, operation=None):
        name, turn = _named(line[0], operation)
        return found.setdefault((name, sources[line[1]]), Term(name, sources[line[1]])), turn

    for line, (flops, memory) in cost.lines.items():
        one, turn = term(line)
        one.add(turn, {"compute": flops / chip.flops, "memory": memory / chip.bandwidth}, flops, memory)
    for c in cost.collectives:
        one, turn = term(c.line, c.kind if c.arrays == 1 else f"{c.kind} of {c.arrays} arrays")
        resource, speed = ("network", chip.network) if c.crosses else ("interconnect", chip.link)
        one.add(turn, {resource: c.wire / speed}, sent=c.wire)
    of = sum(one.total for one in found.values())
    first = sorted((one for one in found.values() if one.total), key=lambda one: -one.total)[:count]
    return [one.as_json(of) for one in first]


def table(terms):
    """Lines for a person."""
    rows = [("ms", "share", "bound by", "term", "made at", "of which")]
    for one in terms:
        parts = ", ".join(f"{turn} {1000 * x:.3g}" for turn, x in one["passes"].items())
        share = f"{100 * one['share']:.0f} %"
        source = one["source"] or "the compiler's own"
        rows.append((f"{1000 * one['seconds']:.4g}", share, one["bound"], one["term"], source, parts))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _named(operation_name, operation=None):
    """('decoder/layers/mlp/up dot_general', 'backward') of jit(step)/transpose(jvp(...))/decoder/.../up/dot_general.

    operation: what stands for the last component: a collective, which bears the name of what it is for.
    """
    turn = "forward"
    if "rematted_computation" in operation_name:
        turn = "recomputed"
    elif "transpose(" in operation_name:
        turn = "backward"
    *path, last = re.sub(r"\w+\([^/]*\)(?=/|$)", "", operation_name).split("/")
    keep = []
    for part in path:
        plumbing = part in PLUMBING or re.fullmatch(r"branch_\d+_fun|splash_share_.*|\w+\.\w+|", part)
        if not plumbing and part not in keep[-1:]:
            keep.append(part)
    return " ".join(filter(None, ("/".join(keep), operation or last))), turn


class _Sources:
    """{frame of hlo.Cost.lines: 'paradigm/layers.py:118'}: of a stack of frames the innermost that no package made."""

    def __init__(self, text):
        self._files = dict(re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.M))
        places = re.findall(r"^(\d+) \{file_name_id=(\d+) .*?line=(\d+)", _section(text, "FileLocations"), re.M)
        self._places = {place: (file, line) for place, file, line in places}
        frames = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
        self._frames = {
            n: (place, parent) for n, place, parent in re.findall(frames, _section(text, "StackFrames"), re.M)
        }

    def __getitem__(self, frame):
        if ":" in frame:
            return _short(*frame.rsplit(":", 1))
        first = ""
        while frame in self._frames:
            place, parent = self._frames[frame]
            file, line = self._places[place]
            name = self._files[file]
            first = first or _short(name, line)
            if "site-packages" not in name:
                return _short(name, line)
            frame = str(int(parent or 1) - 1)  # written one too high, so that 1 is no frame
        return first


def _section(text, heading):
    """The lines of one of the tables that stand before a module's first computation."""
    found = re.search(rf"^{heading}\n(.*?)\n\n", text, re.M | re.S)
    return found[1] if found else ""


def _short(file, line):
    path = pathlib.PurePath(file)
    if path.is_relative_to(ROOT):
        return f"{path.relative_to(ROOT)}:{line}"
    return f"{file.rpartition('site-packages/')[2]}:{line}"
