"""What a GPU does, in nine minutes: one command for the day when there is one. It goes on where it was stopped.

    sh benchmarks/gpu_wheels.sh DIR      where there is the internet: what such a machine may lack
    python -m benchmarks.gpu --peer=PEER_STEP.py --text=FOLDER --out=DIR

Beside each other, at first, what is not timed: the tests marked `gpu`; smoke runs that are killed and go on, bits
compared (tests/launch/run/faults.py, with XLA's deterministic operations); nanoGPT's recipe on FOLDER's train.txt and
valid.txt (runs/small/shakespeare_gpu.gin); and the compilation of the peer, which then takes it from its cache. After
that each alone: cuDNN's attention beside the plain path in value, gradient and time; a step of each `_gpu` workload in
bfloat16, ours and the peer's in turn; LoRA beside full training; the largest batch of CLIP. Every one is a process of
its own with its own bound, and a line of DIR/gpu.jsonl as it ends; what is there without an error is not done again,
--seconds bounds all of it, and what was not reached is said. DIR/gpu.md has the tables. Device memory is what
nvidia-smi shows at most, the same for both sides.
"""

import collections
import concurrent.futures
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time

from absl import flags

from benchmarks.compare import save, table
from launch.run import cli
from paradigm.errors import UserError
from paradigm.storage import expand

WORKLOADS = ("causal_lm_gpu", "masked_lm_gpu", "mae_gpu", "clip_gpu", "span_corruption_gpu")
KILLED = ("next_token", "mae", "clip")  # smoke runs
PARTS = ("tests", "bits", "shakespeare", "compilation", "attention", "steps", "lora", "batch")
TOGETHER = 200  # seconds that what is not timed may take, all at once
Job = collections.namedtuple("Job", "seconds command environment", defaults=({},))


def main(argv):
    del argv
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or nvidia-smi would show what jax reserves
    if unknown := set(PART.value) - set(PARTS):
        raise UserError(f"--part={','.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    end = time.monotonic() + SECONDS.value
    out = expand(OUT.value).resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "gpu.jsonl")
    results.write(("environment",), environment())
    beside, alone = jobs(out)
    with concurrent.futures.ThreadPoolExecutor(len(beside) or 1) as pool:
        for _ in pool.map(lambda item: results.once(*item, end), beside.items()):
            pass
    for item in alone.items():
        results.once(*item, end)
    save(out / "gpu.md", page(results.rows))


class Results:
    """gpu.jsonl: {"part": words, "command", **what a process said}, a line as each process ends."""

    def __init__(self, path):
        self.path, self.lock = path, threading.Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def once(self, part, job, end):
        """Runs a job, unless an earlier start has done so, with the time that is left for it."""
        if any(row["part"] == list(part) and "error" not in row for row in self.rows):
            return
        left = min(job.seconds, end - time.monotonic())
        if left < 10:
            self.write(part, {"error": "not run: no time was left"})
            return
        for row in run(job, left):
            self.write(part, row)

    def write(self, part, row):
        row = {"part": list(part), **row}
        with self.lock, self.path.open("a") as file:
            self.rows.append(row)
            print(json.dumps(row), flush=True)
            file.write(json.dumps(row) + "\n")


def jobs(out):
    """({part: Job} to be done at once, {part: Job} to be done one after the other); parts are tuples of words."""
    python = [sys.executable, "-m"]
    wanted = PART.value or PARTS
    on_gpu = {"JAX_PLATFORMS": "cuda"} if DTYPE.value == "bfloat16" else {}
    beside, alone = {}, {}
    beside[("tests",)] = Job(
        TOGETHER, [*python, "pytest", "-q", "-p", "no:cacheprovider", "tests/paradigm/test_on_gpu.py"], on_gpu
    )
    for name in KILLED:
        own = ["--trials=2", f"--objective={name}", f"--directory={out / 'bits' / name}"]
        platform = [f"--platform={'cuda' if on_gpu else 'cpu'}"]
        beside["bits", name] = Job(TOGETHER, [*python, "tests.launch.run.faults", *own, *platform])
    if TEXT.value:
        source = f"--gin_param=TextData.source = '{expand(TEXT.value).resolve()}'"
        run_file, workdir = "--gin_file=runs/small/shakespeare_gpu.gin", f"--workdir={out / 'shakespeare'}"
        beside[("shakespeare",)] = Job(TOGETHER, [*python, "launch.train", run_file, source, workdir])
    names = WORKLOAD.value or WORKLOADS
    for name in names if PEER.value else ():
        beside["compilation", name] = Job(TOGETHER, [*sides(name)["peer compiled"], "--steps=1"])
    alone[("attention",)] = Job(90, [*python, "benchmarks.gpu", "--attention_table"])
    for side in ("paradigm", "peer compiled", "peer", "paradigm, plain attention"):
        for name in names:
            if side in sides(name):
                alone["steps", name, side] = Job(100, sides(name)[side])
    full = sides(names[0])["paradigm"]
    alone["lora", names[0], "full"] = Job(60, [*full, "--scan=on"])
    alone["lora", names[0], "LoRA"] = Job(60, [*full, "--scan=on", "--adapt=LoRA"])
    for batch in BATCHES.value:
        clip = next((name for name in names if name.startswith("clip")), WORKLOADS[3])
        alone["batch", clip, batch] = Job(60, [*sides(clip)["paradigm"], f"--batch={batch}", "--scan=on"])
    keep = lambda found: {part: job for part, job in found.items() if part[0] in wanted}
    return keep(beside), keep(alone)


def sides(workload):
    """name -> command, the sides of one workload."""
    common = [f"--steps={STEPS.value}", f"--dtype={DTYPE.value}"]
    ours = [sys.executable, "-m", "benchmarks.step", f"--workload={workload}", *common]
    found = {"paradigm": ours, "paradigm, plain attention": [*ours, "--attention=plain"]}
    if PEER.value:
        device = "--device=cpu" if DTYPE.value == "float32" and workload.endswith("_cpu") else "--device=cuda"
        peer = [sys.executable, PEER.value, workload, *common, device]
        found |= {"peer": peer, "peer compiled": [*peer, "--compile"]}
    return found


def run(job, seconds):
    """The JSON lines that a command prints, each with the device memory seen and the time; or the last lines that it
    printed; "error" where it failed or was stopped."""
    start, stop, seen = time.monotonic(), threading.Event(), [0]
    watch = threading.Thread(target=watch_memory, args=(stop, seen), daemon=True)
    watch.start()
    # A group of its own, so that what it has started is stopped with it.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(job.command, **pipes, env=os.environ | job.environment, start_new_session=True)
    error = None
    try:
        said, wrong = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, wrong = process.communicate()
        error = f"stopped after {seconds:.0f} s"
    stop.set()
    watch.join()
    if process.returncode and not error:
        lines = [line for line in wrong.splitlines() if "Error" in line] or (wrong or said).splitlines()
        error = (lines or ["it printed nothing"])[-1][:500]
    more = {"device_mb": seen[0], "process_s": round(time.monotonic() - start, 1)}
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    rows = rows or [{"said": [line for line in said.splitlines() if line.strip()][-6:]}]
    return [{**row, **more, **({"error": error} if error else {})} for row in rows]


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


def page(rows):
    """The tables of gpu.jsonl, in markdown: of what was done twice, the last."""
    newest = {(*row["part"], row.get("attention")): row for row in rows}
    of = lambda part: {key[1:-1]: row for key, row in newest.items() if key[0] == part}
    lines = ["# On a GPU", "", json.dumps(newest["environment", None]), ""]

    def section(title, header, rows):
        if rows:
            lines.extend([f"## {title}", "", *table(header, [[str(cell) for cell in row] for row in rows])])

    def seconds(row):
        return "" if row is None else f"{row['step_s']:.4f} s" if "step_s" in row else row.get("error", "")

    def ratio(one, other):
        return f"{one['step_s'] / other['step_s']:.2f}" if "step_s" in (one or ()) and "step_s" in (other or ()) else ""

    steps, shown = of("steps"), ("paradigm", "paradigm, plain attention", "peer", "peer compiled")
    by_workload = []
    for name in dict.fromkeys(name for name, _ in steps):
        ours, plain, peer, compiled = (steps.get((name, side)) for side in shown)
        mfu = f"{100 * ours['mfu']:.0f} %" if "mfu" in (ours or ()) else ""
        times = map(seconds, (ours, plain, peer, compiled))
        by_workload.append([name, *times, ratio(ours, peer), ratio(ours, compiled), mfu])
    section("A step", ["workload", *shown, "of the peer", "of the compiled", "MFU"], by_workload)
    for part, title in ("lora", "LoRA beside full training"), ("batch", "CLIP by batch"):
        found = [[how, seconds(row), row.get("peak_device_mb", "")] for (_, how), row in of(part).items()]
        section(title, ["", "step", "peak MB"], found)
    far = lambda row, start: f"{row[start + 'value']}, {max(row[start + 'gradient'])}"
    found = [row for row in newest.values() if "gradient" in row]
    found = [[r["attention"], r["kernel"], r["plain_ms"], r["ms"], far(r, "plain_"), far(r, "")] for r in found]
    section("Attention, ms", ["", "kernel", "plain", "picked", "plain differs", "picked differs"], found)
    rest = [(part, *key, row) for part in ("tests", "bits", "shakespeare") for key, row in of(part).items()]
    rest = [[" ".join(words), " · ".join(row.get("said", [])), row.get("error", "")] for *words, row in rest]
    section("Tests, bits after kill -9, nanoGPT's recipe", ["", "said", "error"], rest)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PEER = flags.DEFINE_string("peer", None, "The peer's step benchmark, a Python file.")
    TEXT = flags.DEFINE_string(
        "text", None, "A folder of train.txt and valid.txt: tinyshakespeare's nine tenths and rest."
    )
    OUT = flags.DEFINE_string("out", "gpu", "The directory that the results go to.")
    SECONDS = flags.DEFINE_integer("seconds", 540, "For all of it.", lower_bound=1)
    STEPS = flags.DEFINE_integer("steps", 10, "Steps to time of each, after two that are not.", lower_bound=1)
    DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the arithmetic; float32 is for a CPU.")
    WORKLOAD = flags.DEFINE_multi_string("workload", [], "Only this workload; repeatable.")
    PART = flags.DEFINE_list("part", [], f"Only these of {', '.join(PARTS)}.")
    BATCHES = flags.DEFINE_list("batches", ["768", "1024", "1280"], "Rows of CLIP that are tried.")
    TABLE = flags.DEFINE_bool("attention_table", False, "The table of attention alone, in this process.")
    cli.run(lambda argv: attention_table() if TABLE.value else main(argv))
