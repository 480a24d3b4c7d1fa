"""What the compiler says of a run's train steps: bytes, FLOPs, collectives, a roofline, and what to change."""

import dataclasses
import re
import time

from launch.aot import hlo, terms
from launch.aot.dry_run import bytes_on_device, readable
from launch.run.experiment import bound, flatten, validate
from launch.run.mesh import make_mesh, mesh_shape, parse_mesh
from launch.run.program import Program, step_memory
from paradigm.errors import UserError


def report(experiment, topology, devices, mesh=None):
    """What the steps of an experiment take on these devices: the JSON object's fields, first of the dearest phase.

    Args:
        experiment: an Experiment.
        topology: launch.aot.topology.Topology, and devices: its devices.
        mesh: as in --mesh; None for the experiment's own, adapted.

    Returns:
        a dict: mesh, chips, phase and what `compile_phase` says of the phase that needs the most memory; `phases` with
        all of them where there are several; advice, lines for a person, empty when everything fits.

    Raises:
        UserError: the experiment is invalid on that mesh.
    """
    return of_program(program_on(experiment, topology, devices, mesh), topology)


def program_on(experiment, topology, devices, mesh=None):
    """The experiment's Program on these devices, nothing of it compiled; arguments and errors as of `report`."""
    experiment = bound(experiment)
    experiment = dataclasses.replace(experiment, mesh=mesh or fitting_mesh(experiment, topology.chips))
    validate(experiment, topology.chips)
    return Program(experiment, make_mesh(experiment.mesh, devices))


def of_program(program, topology):
    """`report` of a Program."""
    experiment, mesh = program.experiment, program.mesh
    phases = {phase: compile_phase(program, phase, topology) for phase in program.batch}
    worst = max(phases, key=lambda p: (not phases[p]["fits"], phases[p]["bytes_per_chip"]))
    advice = [
        f"{phase}: {line}"
        for phase, found in phases.items()
        for line in _advice(experiment, found, topology, program.state.frozen_modules)
    ]
    first = {"topology": topology.name, "slices": topology.slices, "chips": topology.chips}
    first["mesh"] = ",".join(f"{axis}:{size}" for axis, size in mesh.shape.items())
    several = {"phases": phases} if len(phases) > 1 else {}
    return {**first, "phase": worst, **phases[worst], **several, "advice": advice}


def compile_phase(program, phase, topology):
    """Compiles one phase: bytes per chip by kind, FLOPs, collectives, seconds, the roofline of a step and its dearest
    terms.

    `flops` is by formula and of the whole step; `compiled_flops_per_chip` is what the program multiplies, with what is
    computed twice (remat) and what is padding. A program that the compiler finds too large has only its bytes.
    """
    state, batch = program.state, program.batch[phase]
    kinds = {
        "params": state.params,
        "frozen": state.frozen,
        "optimizer": state.opt_state,
        "extra": state.extra,
        "batch": batch,
    }
    arguments = {kind: bytes_on_device(tree) for kind, tree in kinds.items()}
    chip = topology.chip
    found = {
        "bytes_per_chip": None,
        "hbm_per_chip": chip and chip.hbm,
        "fits": True,
        "arguments": sum(arguments.values()),
        "arguments_by_kind": arguments,
        "temporaries": None,
        "flops": program.experiment.objective.flops(batch, program.state.frozen_modules),
    }
    start = time.perf_counter()
    try:
        with terms.as_named_here():
            compiled = program.compile(phase)
    except Exception as error:
        needed = _out_of_memory(str(error))
        if needed is None:
            raise
        needed = int(min(needed, 1 << 50))  # it does not always say how much
        found |= {"temporaries": needed, "fits": False, "compile_seconds": round(time.perf_counter() - start, 1)}
        found["bytes_per_chip"] = found["arguments"] + needed
        return found
    seconds = time.perf_counter() - start
    found["arguments"], found["temporaries"] = step_memory(compiled)
    found["bytes_per_chip"] = found["arguments"] + found["temporaries"]
    found["fits"] = chip is None or found["bytes_per_chip"] <= chip.hbm
    text = compiled.as_text()
    cost = hlo.cost(text, topology.chips // topology.slices)
    found |= {
        "compiled_flops_per_chip": cost.flops,
        "memory_traffic_per_chip": cost.memory,
        "collectives": hlo.by_kind(cost.collectives),
        "attention": program.attention[phase],
        "compile_seconds": round(seconds, 1),
        "roofline": chip and roofline(cost, found["flops"], topology),
        "terms": chip and terms.dearest(cost, text, chip),
    }
    return found


def roofline(cost, flops, topology):
    """Seconds of a step as each resource alone would have it, and together.

    step_seconds: the slowest of them, as if all overlapped; without_overlap: their sum. The truth lies between, or
    above where latency counts. estimate: between them by what the program says: of each term of it the slower of
    compute and memory, and then the collectives that it waits for; the others at least take their time.
    mfu: model FLOPs over step_seconds at the chips' peak, so the MFU can hardly be more.
    """
    chip = topology.chip
    wire = {crosses: sum(c.wire for c in cost.collectives if c.crosses == crosses) for crosses in (False, True)}
    parts = {
        "compute": cost.flops / chip.flops,
        "memory": cost.memory / chip.bandwidth,
        "interconnect": wire[False] / chip.link,
        "network": wire[True] / chip.network,
    }
    step = max(parts.values())
    terms = sum(max(flops / chip.flops, memory / chip.bandwidth) for flops, memory in cost.lines.values())
    waits = sum(c.wire / (chip.network if c.crosses else chip.link) for c in cost.collectives if not c.begins)
    return {
        **{name: _short(value) for name, value in parts.items()},
        "bound": max(parts, key=parts.get),
        "step_seconds": _short(step),
        "without_overlap": _short(sum(parts.values())),
        "estimate": _short(max(step, terms + waits)),
        "mfu": _short(flops / topology.chips / chip.flops / step),
    }


def fitting_mesh(experiment, chips):
    """The experiment's own mesh where it fills the chips, else the nearest that does: the axis that spreads the rows
    takes what tensor leaves, or data does where both spread them or a dim is too short for more fsdp; where rows run
    out, tensor takes twice as many, and so on."""
    own = parse_mesh(experiment.mesh)
    candidates = [experiment.mesh]
    wide = "fsdp" if own["fsdp"] != 1 else "data"
    tensor, context = max(own["tensor"], 1), max(own.get("context", 1), 1)
    kept = f",context:{context}" if context > 1 else ""
    while chips % (tensor * context) == 0 and tensor * context <= chips:
        ways = chips // (tensor * context)
        over_one = [f"{wide}:{ways},tensor:{tensor}{kept}"]
        over_both = []
        if own["fsdp"] > 1 and ways % own["fsdp"] == 0:
            over_both = [f"data:{ways // own['fsdp']},fsdp:{own['fsdp']},tensor:{tensor}{kept}"]
        candidates += over_both + over_one if own["data"] > 1 else over_one + over_both
        tensor *= 2
    problems = []
    for candidate in candidates:
        try:
            validate(dataclasses.replace(experiment, mesh=candidate), chips)
        except UserError as error:
            problems.append(error)
            continue
        shape = mesh_shape(candidate, chips)
        return ",".join(f"{axis}:{size}" for axis, size in shape.items())
    raise problems[min(1, len(problems) - 1)]


def _out_of_memory(text):
    """The bytes that the compiler says it needs beside the arguments, from its error; None for another error."""
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of", text)
    number, unit = (found[1] or found[3], found[2] or found[4]) if found else ("inf", "G")
    return float(number) * 1024 ** ("KMGT".index(unit) + 1)


def _advice(experiment, found, topology, frozen=()):
    """Which term is too large, and what to change, in the order of what costs least."""
    if found["fits"]:
        return
    sizes = {**found["arguments_by_kind"], "temporaries": found["temporaries"]}
    largest = max(sizes, key=sizes.get)
    listed = ", ".join(f"{kind} {readable(size)}" for kind, size in sizes.items())
    yield f"{readable(found['bytes_per_chip'])} a chip, and it has {readable(found['hbm_per_chip'])}: {listed}"
    changes = []
    if largest in ("params", "frozen", "optimizer", "extra"):
        if mesh_shape(experiment.mesh, topology.chips)["data"] > 1:
            changes.append("shard the state over every chip: --mesh=data:1,fsdp:-1")
        if largest == "optimizer":
            changes.append("an optimizer with less state, as in Experiment.optimizer = @Adafactor()")
        changes.append("more chips")
    else:
        flat = flatten(experiment.objective)
        remat = {path.split(".")[-2]: value for path, value in flat.items() if path.endswith(".remat")}
        for name in (name for name, value in remat.items() if value == "'none'"):
            changes.append(f"keep the products with kernels alone: set the {name}'s remat = 'dots' (now 'none')")
        shape = mesh_shape(experiment.mesh, topology.chips)
        if parts := _parts(experiment, shape["data"] * shape["fsdp"], found, frozen):
            changes.append(f'cut the batch: --gin_param="Experiment.microbatches = {parts}"')
        for name in (name for name, value in remat.items() if value != "'full'"):  # a quarter of the FLOPs once more
            changes.append(f"compute activations again: set the {name}'s remat = 'full' (now {remat[name]})")
        if 2 * shape["tensor"] <= topology.chips:
            changes.append(f"split each layer over more chips: tensor:{2 * shape['tensor']} in --mesh")
        if experiment.objective.context_length is not None:
            changes.append(f"cut rows along their length: context:{2 * shape.get('context', 1)} in --mesh")
        changes.append(f"a smaller Experiment.batch_size (now {experiment.batch_size}), or more chips")
    yield f"{largest} is what is too large; in turn: {'; '.join(changes)}"


def _parts(experiment, ways, found, frozen=()):
    """So many microbatches as may fit, by doubling, or as many as the rows allow; None where none can be cut."""
    if experiment.objective.has_batch_norm(frozen):
        return None
    parts, least = None, found["temporaries"] / max(found["hbm_per_chip"] - found["arguments"], 1)
    more = 2 * experiment.microbatches
    while experiment.batch_size % (more * ways) == 0:
        parts = more
        if parts >= least * experiment.microbatches:
            break
        more *= 2
    return parts


def _short(value):
    return float(f"{value:.4g}")
