"""A decoder's step as compiled for a pod, beside MaxText's: bytes, FLOPs, memory traffic, collectives, an estimate.

    pip install maxtext[tpu]==0.2.5 -e .     # an environment of its own, of Python 3.12
    python -m benchmarks.aot --workdir=DIR   # by its python

Both sides are compiled by one compiler for one topology, with the same shapes, the same mesh, bfloat16 arithmetic,
float32 parameters, AdamW and activations computed again in the backward pass, and their programs are read by one reader
(launch/aot/hlo.py). Nothing runs on a TPU. Each side is a process of its own and keeps what it found in DIR: what is
there is not compiled again. docs/results/aot.md is written of all that is there by then.
"""

import json
import re
import subprocess
import sys

from absl import flags

from benchmarks.compare import save, table
from launch.aot import hlo
from launch.aot.report import roofline
from launch.aot.topology import parse_topology
from launch.run import cli
from paradigm.errors import UserError
from paradigm.storage import expand

TOPOLOGY = "v5e:16x16"
# title: (our run file, bindings, MaxText's settings, rows, length). Its rows are counted by device.
CASES = {
    "1.1B, 20 layers of 2048": (
        "runs/gpt_1b_c4.gin",
        ("gpt.remat = 'full'", "Experiment.microbatches = 1"),
        ("base_num_decoder_layers=20", "base_mlp_dim=5504", "vocab_size=32128"),
        512,
        2048,
    ),
    "8B, Llama 3.1's": (
        "runs/llama_8b_c4.gin",
        ("Experiment.batch_size = 256", "Experiment.microbatches = 1"),
        ("model_name=llama3.1-8b",),
        256,
        8192,
    ),
}
MESHES = {"fsdp:256": (1, 256), "data:4,fsdp:64": (4, 64)}
ROWS = {  # of the page: name -> how a side is shown
    "arguments, MB": lambda r: f"{r['arguments'] / 1e6:.0f}",
    "temporaries, MB": lambda r: f"{r['temporaries'] / 1e6:.0f}",
    "FLOPs, 1e13": lambda r: f"{r['flops'] / 1e13:.2f}",
    "memory traffic, GB": lambda r: f"{r['memory'] / 1e9:.1f}",
    "collectives, GB": lambda r: "; ".join(f"{k} {v['bytes'] / 1e9:.1f}" for k, v in r["collectives"].items()),
    "compute, ms": lambda r: f"{1e3 * r['roofline']['compute']:.0f}",
    "memory, ms": lambda r: f"{1e3 * r['roofline']['memory']:.0f}",
    "interconnect, ms": lambda r: f"{1e3 * r['roofline']['interconnect']:.0f}",
    "estimate of the step, ms": lambda r: f"{1e3 * r['roofline']['estimate']:.0f}",
    "MFU of the estimate": lambda r: f"{100 * r['mfu']:.0f} %",
    "compilation, s": lambda r: f"{r['seconds']:.0f}",
}


def main(argv):
    del argv
    work = expand(WORKDIR.value).resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for title, (run, bindings, settings, rows, length) in CASES.items():
        for mesh, (data, fsdp) in MESHES.items():
            name = re.sub(r"\W+", "-", f"{title} {mesh}")
            ours = once(work / f"{name}-ours.json", lambda path: compile_ours(path, run, bindings, data, fsdp))
            theirs = once(
                work / f"{name}-maxtext.json", lambda path: compile_maxtext(path, settings, data, fsdp, rows, length)
            )
            found[title, mesh] = ours, read(work / f"{name}-maxtext.txt", theirs, ours["flops_of_model"], length)
            save(expand(PAGE.value), page(found))


def once(path, make):
    """What a JSON file holds, after making it where it is not there."""
    if not path.exists():
        make(path)
    return json.loads(path.read_text())


def compile_ours(path, run, bindings, data, fsdp):
    """Runs launch.compile; writes what the page takes of its last line."""
    bindings = [f"--gin_param={binding}" for binding in bindings]
    mesh = f"--mesh=data:{data},fsdp:{fsdp},tensor:1"
    line = process("launch.compile", f"--gin_file={run}", f"--topology={TOPOLOGY}", mesh, *bindings)
    found = json.loads(line)
    traffic = {"flops": found["compiled_flops_per_chip"], "memory": found["memory_traffic_per_chip"]}
    keep = {name: found[name] for name in ("arguments", "temporaries", "roofline", "collectives")}
    keep |= {"seconds": found["compile_seconds"], "flops_of_model": found["flops"]}
    path.write_text(json.dumps({**keep, **traffic}))


def compile_maxtext(path, settings, data, fsdp, rows, length):
    """Runs benchmarks/maxtext_step.py, which writes OUT.json and OUT.txt."""
    own = [f"ici_data_parallelism={data}", f"ici_fsdp_parallelism={fsdp}", "compile_topology_num_slices=1"]
    own += [f"per_device_batch_size={rows // (data * fsdp)}", f"max_target_length={length}", "compile_topology=v5e-256"]
    own += ["remat_policy=full", "enable_dropout=false", "enable_checkpointing=false", "dataset_type=synthetic"]
    own += ["allow_split_physical_axes=true"]  # 4 and 64 of 16 x 16
    process("benchmarks.maxtext_step", str(path), *settings, *own, "run_name=aot", "hardware=tpu")


def process(module, *arguments):
    """Runs a module; its last line. Raises UserError where it fails."""
    command = [sys.executable, "-m", module, *arguments]
    print(" ".join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return (done.stdout.splitlines() or [""])[-1]


def read(path, found, flops, length):
    """MaxText's program by our reader. Its kernel goes through the blocks of 512 that are not above the diagonal, of
    which the compiler says nothing: the share is written where our own kernel writes it."""
    blocks = length // 512
    text = path.read_text().replace("static_sparsity_splash", f"splash_share_{(blocks + 1) / (2 * blocks):.4f}")
    topology = parse_topology(TOPOLOGY)
    cost = hlo.cost(text, topology.chips)
    found |= {"flops": cost.flops, "memory": cost.memory, "collectives": hlo.by_kind(cost.collectives)}
    return {**found, "roofline": roofline(cost, flops, topology), "flops_of_model": flops}


def page(found):
    """Markdown. found: {(title, mesh): (ours, MaxText's)}."""
    import importlib.metadata as metadata

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "libtpu", "flax", "maxtext"))
    about = "\n\n".join(__doc__.strip().split("\n\n")[1:])
    lines = ["# A decoder's step as compiled, beside MaxText's", "", about, ""]
    lines += [f"Compiled for {TOPOLOGY} with {versions}; a chip and step.", ""]
    topology = parse_topology(TOPOLOGY)
    peak = topology.chips * topology.chip.flops
    for (title, mesh), sides in found.items():
        for side in sides:
            side["mfu"] = side["flops_of_model"] / peak / side["roofline"]["estimate"]
        *_, rows, length = CASES[title]
        body = [[name, *map(show, sides)] for name, show in ROWS.items()]
        lines += [f"## {title}, {rows} x {length:,} tokens, {mesh}", "", *table(["", "Paradigm", "MaxText"], body)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", "/tmp/aot", "Where what each side takes is kept.")
    PAGE = flags.DEFINE_string("page", "docs/results/aot.md", "The page that is written.")
    cli.run(main)
