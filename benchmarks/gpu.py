"""What a GPU does with the standard workloads, beside a peer: one command for the day when there is one.

    python -m benchmarks.gpu --peer=PEER_STEP.py --out=FILE.jsonl

First cuDNN's attention against the plain path, in value, gradient and time. Then each `_gpu` workload in bfloat16,
each side in a process of its own, one after the other: this project with the attention that the device has and with the
plain one, and the peer as it is and compiled. --out has one JSON line for each, written as it comes, so that what was
measured is kept when time runs out; --seconds bounds all of it, and what was not reached is said. Device memory is
what nvidia-smi shows at most, the same for both sides.
"""

import functools
import json
import os
import subprocess
import sys
import threading
import time

from absl import flags

from launch.run import cli
from paradigm.storage import expand

WORKLOADS = ("causal_lm_gpu", "masked_lm_gpu", "mae_gpu", "clip_gpu", "span_corruption_gpu")
ENOUGH = 150  # seconds that one side of one workload may take


def main(argv):
    del argv
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or nvidia-smi would show what jax reserves
    end = time.monotonic() + SECONDS.value
    out = expand(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:

        def write(row):
            print(json.dumps(row), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()

        if not ONLY.value:
            write({"environment": environment()})
            for row in run([sys.executable, "-m", "benchmarks.gpu", "--attention_table"], end - time.monotonic()):
                write(row)
        names = ONLY.value or WORKLOADS
        # Compiling the peer takes most of the time: it comes last, when all else is measured.
        for side in sides(names[0]):
            for workload in names:
                left = min(ENOUGH, end - time.monotonic())
                if left < 10:
                    write({"workload": workload, "side": side, "error": "not run: no time was left"})
                    continue
                for row in run(sides(workload)[side], left):
                    write({"workload": workload, "side": side, **row})


def sides(workload):
    """name -> command, the sides of one workload."""
    common = [f"--steps={STEPS.value}", f"--dtype={DTYPE.value}"]
    ours = [sys.executable, "-m", "benchmarks.step", f"--workload={workload}", *common]
    found = {"paradigm": ours}
    if PEER.value:
        device = ["--device=cpu" if DTYPE.value == "float32" and workload.endswith("_cpu") else "--device=cuda"]
        peer = [sys.executable, PEER.value, workload, *common, *device]
        found |= {"peer": peer}
    found |= {"paradigm, plain attention": [*ours, "--attention=plain"]}
    return found | ({"peer compiled": [*peer, "--compile"]} if PEER.value else {})


def run(command, seconds):
    """The JSON lines that a command prints, each with the device memory seen; or one that says how it failed."""
    start, stop, seen = time.monotonic(), threading.Event(), [0]
    watch = threading.Thread(target=watch_memory, args=(stop, seen), daemon=True)
    watch.start()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [{"error": f"stopped after {seconds:.0f} s"}]
    finally:
        stop.set()
        watch.join()
    more = {"device_mb": seen[0], "process_s": round(time.monotonic() - start, 1)}
    rows = [json.loads(line) | more for line in done.stdout.splitlines() if line.startswith("{")]
    said = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
    return rows or [{"error": (said or ["it printed nothing"])[-1][:500], **more}]


def watch_memory(stop, seen):
    """Keeps the most MB that nvidia-smi shows as used in seen[0], until `stop` is set."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    while not stop.wait(0.3):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            return
        seen[0] = max([seen[0], *(int(word) for word in done.stdout.split() if word.isdigit())])


def environment():
    """Versions and the device's name."""
    import importlib.metadata as metadata

    names = "jax", "jaxlib", "flax", "optax", "torch", "transformers"
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        device = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        device = "no nvidia-smi"
    return {"device": device, "python": sys.version.split()[0], "processors": os.cpu_count(), **versions}


# batch, heads, length, source, head width, causal, segments, bias
ATTENTIONS = {
    "causal": (8, 16, 2048, 2048, 128, True, False, False),
    "causal, packed": (8, 16, 2048, 2048, 128, True, True, False),
    "patches": (64, 16, 197, 197, 64, False, False, False),
    "padded": (64, 16, 512, 512, 64, False, True, False),
    "t5 bias": (64, 16, 512, 512, 64, False, True, True),
    "odd": (4, 4, 77, 77, 64, True, False, False),
}


def attention_table():
    """One line for each of ATTENTIONS: which kernel was picked, its time over the plain path's, and its differences.

    Both are compared with the plain path in float32; `value` and `gradient` are the largest difference over the largest
    magnitude, of the pick and (`plain_...`) of the plain path in bfloat16.
    """
    import jax
    import jax.numpy as jnp

    from paradigm import attention, attention_kernels
    from paradigm.attention import AttentionMask

    for name, (batch, heads, length, source, width, causal, segments, bias) in ATTENTIONS.items():
        keys = jax.random.split(jax.random.key(0), 5)
        draw = lambda key, n: jax.random.normal(key, (batch, heads, n, width), jnp.bfloat16)
        q, k, v, g = (draw(key, n) for key, n in zip(keys, (length, source, source, length)))
        table = jax.random.normal(keys[4], (1, heads, length, source), jnp.float32) if bias else None
        parts = jnp.broadcast_to(1 + (jnp.arange(length) >= length // 3), (batch, length)) if segments else None
        mask = AttentionMask(causal, None, parts, parts)

        def slopes(kind, dtype, q, k, v, table, g, parts=parts, mask=mask, width=width):
            def value(q, k, v, table):
                attend = attention.attend if kind == "plain" else attention_kernels.attend
                y = attend(q, k, v, mask, table, width**-0.5)
                return (y.astype(jnp.float32) * g.astype(jnp.float32)).sum(), y

            inputs = [None if x is None else x.astype(dtype) for x in (q, k, v, table)]
            grads, y = jax.grad(value, (0, 1, 2) if table is None else (0, 1, 2, 3), has_aux=True)(*inputs)
            return y, grads

        row = {"attention": name, "kernel": attention_kernels.pick(q, k, mask, False, table)[0]}
        try:
            results, seconds = {}, {}
            for kind, dtype in ("plain", jnp.float32), ("plain", jnp.bfloat16), ("picked", jnp.bfloat16):
                f = jax.jit(functools.partial(slopes, kind, dtype))
                with jax.default_matmul_precision("highest"):
                    f = f.lower(q, k, v, table, g).compile()
                results[kind, dtype] = jax.block_until_ready(f(q, k, v, table, g))
                start = time.perf_counter()
                for _ in range(10):
                    last = f(q, k, v, table, g)
                jax.block_until_ready(last)
                seconds[kind, dtype] = (time.perf_counter() - start) / 10
            exact = results["plain", jnp.float32]
            far = lambda a, b: float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
            for label, key in ("plain_", ("plain", jnp.bfloat16)), ("", ("picked", jnp.bfloat16)):
                row[label + "ms"] = round(1e3 * seconds[key], 3)
                row[label + "value"] = round(far(results[key][0], exact[0]), 6)
                row[label + "gradient"] = [round(far(a, b), 6) for a, b in zip(results[key][1], exact[1])]
        except Exception as error:  # one that fails says so, and the others are measured
            row["error"] = str(error).splitlines()[0][:300]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    PEER = flags.DEFINE_string("peer", None, "The peer's step benchmark, a Python file.")
    OUT = flags.DEFINE_string("out", "gpu.jsonl", "Where the lines go.")
    SECONDS = flags.DEFINE_integer("seconds", 900, "For all of it.", lower_bound=1)
    STEPS = flags.DEFINE_integer("steps", 10, "Steps to time of each, after two that are not.", lower_bound=1)
    DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "What the arithmetic is done in.")
    ONLY = flags.DEFINE_multi_string("workload", [], "Only this workload; repeatable.")
    TABLE = flags.DEFINE_bool("attention_table", False, "The table of attention alone, in this process.")
    cli.run(lambda argv: attention_table() if TABLE.value else main(argv))
