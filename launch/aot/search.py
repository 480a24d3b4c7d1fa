"""--mesh=search: the sensible meshes of a topology, compiled one after the other, by the estimated time of a step."""

from launch.aot.dry_run import bytes_on_device, readable
from launch.aot.report import fitting_mesh, of_program, program_on
from launch.run.experiment import bound
from launch.run.mesh import mesh_shape
from paradigm.errors import UserError

TRIES = 6  # compiled at most: each takes a minute or more
TENSOR = 8  # ways of tensor at most: it sends activations in every layer, over the links of a few neighbours


def candidates(own, chips, slices=1):
    """Meshes as {axis: size}, the most promising first: `own`, then others whose `tensor` is the same, then its half
    and double.

    `data` is the slices, or 4 or 16 times as many, or all: the state is then cut over the rest, which gathers it in
    shorter rings, and its gradient is scattered there before it is summed over `data`.
    """
    found = [dict(own)]
    context = own.get("context", 1)
    for tensor in (own["tensor"], own["tensor"] // 2, 2 * own["tensor"]):
        if not 1 <= tensor <= max(TENSOR, own["tensor"]) or chips % (tensor * context):
            continue
        ways = chips // (tensor * context)
        for data in dict.fromkeys((slices, 4 * slices, 16 * slices, ways)):
            if ways % data == 0 and data % slices == 0:
                found.append({**own, "data": data, "fsdp": ways // data, "tensor": tensor})
    return [mesh for n, mesh in enumerate(found) if mesh not in found[:n]]


def search(experiment, topology, devices, say=print):
    """Tries `candidates` until TRIES of them have been compiled.

    Meshes that the run cannot take, or whose state alone is larger than a chip's memory, are not compiled.

    Args:
        say: is given a line as each is done, and the table at the end.

    Returns:
        the `report` of the best, with "search": [{"mesh", "fits", "estimate", "bytes_per_chip", "note"}], the fastest
        first, those that do not fit after all others. Where none fits it is that of the least bytes.

    Raises:
        UserError: nothing is known of the topology's speed, or the run can take none of the meshes.
    """
    chip = topology.chip
    if chip is None:
        raise UserError(f"--mesh=search goes by estimated time, and of --topology={topology.name} no speed is known")
    experiment = bound(experiment)
    own = mesh_shape(fitting_mesh(experiment, topology.chips), topology.chips)
    rows, reports = [], {}
    for sizes in candidates(own, topology.chips, topology.slices):
        if len(reports) == TRIES:
            break
        mesh = flag(sizes)
        row = {"mesh": mesh, "fits": False, "estimate": None, "bytes_per_chip": None, "note": ""}
        rows.append(row)
        try:
            program = program_on(experiment, topology, devices, mesh)
        except UserError as error:
            row["note"] = f"cannot be: {error}"
        else:
            row["bytes_per_chip"] = bytes_on_device(program.state)
            row["note"] = f"does not fit: the state alone has {readable(row['bytes_per_chip'])}"
            if row["bytes_per_chip"] <= chip.hbm:
                reports[mesh] = found = of_program(program, topology)
                row |= _summary(found)
        say(f"{mesh}: {_said(row)}")
    if not reports:
        raise UserError(f"--mesh=search: {topology.name} has no mesh for this run: {rows[0]['mesh']} {rows[0]['note']}")
    rows.sort(key=lambda row: (not row["fits"], row["estimate"] or float("inf"), row["bytes_per_chip"] or 1 << 60))
    best = next(row["mesh"] for row in rows if row["mesh"] in reports)
    return {**reports[best], "search": rows}


def flag(sizes):
    """{'data': 4, 'fsdp': 64, 'tensor': 1} -> 'data:4,fsdp:64'."""
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items() if size > 1) or "data:1"


def table(rows):
    """Lines for a person, the last the flag to copy."""
    lines = [f"{row['mesh']:<28}{_said(row)}" for row in rows]
    best = f"--mesh={rows[0]['mesh']}" if rows[0]["fits"] else "none fits"
    return ["meshes by estimated time of a step:", *lines, f"best: {best}"]


def _summary(found):
    """Of a report, all its phases: the slowest step and the largest."""
    phases = found.get("phases", {found["phase"]: found}).values()
    times = [one["roofline"]["estimate"] for one in phases if one.get("roofline")]
    large = "" if found["fits"] else f"does not fit: {found['advice'][0]}"
    return {
        "fits": found["fits"],
        "estimate": max(times) if len(times) == len(phases) else None,
        "bytes_per_chip": found["bytes_per_chip"],
        "note": large,
    }


def _said(row):
    time = f"{1000 * row['estimate']:.4g} ms, " if row["estimate"] else ""
    return row["note"] if row["note"] else f"{time}{readable(row['bytes_per_chip'])} a chip"
