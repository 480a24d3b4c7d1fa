"""Time one optimiser step of a named workload: the real objective, train step and AdamW, on workloads.json's shapes.

    python -m benchmarks.step --workload=causal_lm_cpu
    python -m benchmarks.step --workload=causal_lm_cpu --adapt=LoRA
    python -m benchmarks.step --workload=causal_lm_cpu --peer="PEER COMMAND" --peer="ANOTHER" --rounds=3

The last line is one JSON object. With --peer the peers and this benchmark run in turn, each in a process of its own,
`rounds` times; the line then holds the ratio of the medians to the faster peer's. A peer prints such a line itself.
"""

import collections
import json
import pathlib
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

from benchmarks.machine import processor
from launch.run import cli, host
from paradigm.errors import choose

WORKLOAD = flags.DEFINE_string("workload", None, "A name in benchmarks/workloads.json.", required=True)
STEPS = flags.DEFINE_integer("steps", 5, "Steps to time, after two that are not.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the arithmetic is done in.")
ATTENTION = flags.DEFINE_enum("attention", "auto", ["auto", "plain"], "What the device can, or the plain path.")
PEER = flags.DEFINE_multi_string("peer", [], "A command to compare with, run in turn; repeatable.")
SCAN = flags.DEFINE_enum("scan", "auto", ["auto", "on", "off"], "One traced body for all layers; auto: if many.")
BATCH = flags.DEFINE_integer("batch", None, "Rows, in place of the workload's.", lower_bound=1)
ADAPT = flags.DEFINE_enum("adapt", None, ["LoRA", "BitFit", "IA3", "BottleneckAdapter"], "Adapted so, by its defaults.")
PROFILE = flags.DEFINE_integer("profile", 0, "Name this many of the costliest kernels too, of three steps more.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of a comparison.", lower_bound=1)

WORKLOADS = json.loads(pathlib.Path(__file__).with_name("workloads.json").read_text())
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01  # the peer's: torch.optim.AdamW's default decay


def main(argv):
    del argv
    host.enable_huge_pages()  # before a comparison too: peers inherit the setting, so that both sides have the same
    if PEER.value:
        print(json.dumps(compare()))
        return
    print(json.dumps(measure()))


def causal_lm(w, fields, draw):
    """GPT-2's form: (objective, its entries of a batch)."""
    from t5like import models, objectives
    from t5like.vocabulary import Vocabulary

    shape = w["batch"], w["seq"]
    model = models.gpt("small", w["vocab"], "gpt2", max_length=w["seq"], **fields)
    targets = draw(2, w["vocab"], shape)
    tokens = {"inputs": np.roll(targets, 1, 1), **texts(targets)}
    return objectives.NextToken(model, w["seq"]).bind(Vocabulary(w["vocab"], pad=0, eos=1)), tokens


def masked_lm(w, fields, draw):
    """BERT's form, 15 % of the places scored: (objective, its entries of a batch)."""
    from t5like import models, objectives
    from t5like.vocabulary import Vocabulary

    model = models.bert("tiny", w["vocab"], max_length=w["seq"], dropout=0.0, **fields)
    objective = objectives.MaskedLM(model, w["seq"]).bind(Vocabulary(w["vocab"], pad=0, eos=1, mask=2))
    shape = w["batch"], w["seq"]
    scored = w["batch"], objective.batch_spec(w["batch"])["targets"].shape[1]
    places = np.sort(np.argsort(np.random.default_rng(1).random(shape), 1)[:, : scored[1]], 1)
    tokens = {"encoder_inputs": draw(3, w["vocab"], shape), "encoder_segments": np.ones(shape)}
    tokens |= {"inputs": np.full(scored, 2), **texts(draw(3, w["vocab"], scored)), "positions": places}
    return objective, tokens


def texts(targets):
    """What a batch holds beside the inputs: every row is one document, all of it scored."""
    ones, places = np.ones(targets.shape), np.broadcast_to(np.arange(targets.shape[1]), targets.shape)
    return {"targets": targets, "weights": ones, "segments": ones, "positions": places}


def span_corruption(w, fields, draw):
    """T5 v1.1: (objective, its entries of a batch)."""
    from t5like import models, objectives
    from t5like.vocabulary import Vocabulary

    source, targets = (draw(2, w["vocab"], (w["batch"], length)) for length in (w["seq"], w["target"]))
    tokens = {"encoder_inputs": source, "encoder_segments": np.ones(source.shape)}
    tokens |= {"inputs": np.roll(targets, 1, 1), **texts(targets)}
    sentinels = tuple(range(w["vocab"] - 1, w["vocab"] - 101, -1))
    vocabulary = Vocabulary(w["vocab"], pad=0, eos=1, sentinels=sentinels)
    return objectives.SpanCorruption(models.t5("small", w["vocab"], **fields), w["seq"]).bind(vocabulary), tokens


def mae(w, fields, draw):
    """Masked autoencoding at 75 %: (objective, its entries of a batch)."""
    from vision import augment, objectives, vit

    model = vit.vit("tiny", w["image"], w["patch"], **fields)
    widths = {"decoder_" + name: w["dec_" + key] for name, key in DECODER.items()}
    views = augment.no_views(w["image"])
    return objectives.MAE(encoder=model, augment=views, host_image_size=w["image"], **widths), pictures(w, draw)


def mae_all_patches(w, fields, draw):
    """The same with an encoder that reads every patch, and not the visible ones alone."""
    import jax.numpy as jnp

    from vision.objectives import MAE
    from vision.objectives.base import own

    class AllPatches(MAE):
        def predict(self, variables, images, ids_shuffle):
            _, intermediates = self.encoder.apply(own("encoder", variables), images, keep=ids_shuffle)
            latent = jnp.concatenate([intermediates["class"][:, None], intermediates["patches"][:, : self.kept]], 1)
            return self.decoder.apply(own("decoder", variables), latent, ids_shuffle)

    objective, entries = mae(w, fields, draw)
    return AllPatches(**vars(objective)), entries


def clip(w, fields, draw):
    """CLIP with towers of equal width: (objective, its entries of a batch)."""
    from multimodal import objectives, towers
    from vision import augment

    image = towers.clip_vit("tiny", w["image"], w["patch"], **fields)
    text = towers.clip_text("tiny", w["vocab"], w["seq"], end_id=1, **fields)
    views = augment.no_views(w["image"])
    objective = objectives.CLIP(encoder=image, text=text, augment=views, host_image_size=w["image"], width=w["d_model"])
    tokens = draw(2, w["vocab"], (w["batch"], w["seq"]))
    tokens[:, -1] = 1
    return objective, {**pictures(w, draw), "tokens": tokens, "cut": np.zeros(w["batch"])}


def pictures(w, draw):
    """Entries of a batch of square pictures."""
    shape = w["batch"], w["image"], w["image"], 3
    return {"image": draw(0, 256, shape), "aspect": np.ones(w["batch"]), "label": np.full(w["batch"], -1)}


DECODER = {"width": "d_model", "layers": "layers", "heads": "heads"}
KINDS = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "span_corruption": span_corruption,
    "mae": mae,
    "mae_all_patches": mae_all_patches,
    "clip": clip,
}


def workload():
    """(objective, batch of numpy arrays) of --workload.

    Raises:
        UserError: an unknown name, or a workload whose objective this project does not have yet.
    """
    import jax

    w = choose("workload", WORKLOAD.value, WORKLOADS)
    w = {**w, "batch": BATCH.value or w["batch"]}
    make = choose("kind of workload", w["kind"], KINDS)
    fields = {name: w[name] for name in ("d_model", "heads", "d_ff", "layers")}
    fields |= {"head_dim": w["d_model"] // w["heads"], "dtype": DTYPE.value}
    # Unrolled is faster, and compiles in time when there are few layers, or on a GPU not more than a tower's.
    most = 24 if jax.default_backend() == "gpu" and w["kind"] != "span_corruption" else 8
    fields["scan"] = {"auto": w["layers"] > most, "on": True, "off": False}[SCAN.value]
    objective, entries = make(w, fields, np.random.default_rng(0).integers)
    rows = {"index": np.stack([np.zeros(w["batch"]), np.arange(w["batch"])], 1), "mask": np.ones(w["batch"])}
    spec = objective.batch_spec(w["batch"])
    if "text_bytes" in spec:
        rows["text_bytes"] = np.full(w["batch"], 4.0 * w["seq"])
    return objective, {name: np.asarray(x, spec[name].dtype) for name, x in {**rows, **entries}.items()}


def measure():
    """One line as the peer prints it, with mfu, dtype and processor."""
    import jax

    from paradigm import adapt, attention_kernels
    from paradigm.metrics import peak_flops
    from paradigm.optim import AdamW
    from paradigm.step import init_state, make_train_step

    objective, batch = workload()
    if ADAPT.value:
        objective = objective.adapted(getattr(adapt, ADAPT.value)())
    optimizer = AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    state = jax.block_until_ready(jax.jit(lambda: init_state(objective, optimizer, seed=0))())
    batch = jax.device_put(batch)
    host.return_pages()
    start = time.perf_counter()
    with attention_kernels.use(ATTENTION.value):
        step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0).lower(state, batch)
    step = step.compile(host.compiler_options(jax.default_backend()))
    compiled = time.perf_counter() - start
    host.return_pages()

    seconds = []
    for _ in range(2 + STEPS.value):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        float(metrics["loss"][0])
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[2:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # before the peak is measured
    profile = {"kernels": kernels(lambda state: step(state, batch), state, PROFILE.value)} if PROFILE.value else {}
    return {
        "workload": WORKLOAD.value,
        "step_s": round(median, 4),
        "items_per_s": round(objective.throughput(batch)[1] / median, 1),
        "params": sum(x.size for x in jax.tree.leaves(state.all_params)),
        "trained": sum(x.size for x in jax.tree.leaves(state.params)),
        "optimizer_mb": round(sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) / 2**20, 2),
        "peak_rss_mb": memory,
        "peak_device_mb": device_memory(),
        "compile_s": round(compiled, 1),
        "attention": ATTENTION.value,
        "scan": SCAN.value,
        "batch": batch["mask"].size,
        "mfu": round(objective.flops(batch, state.frozen_modules) / median / peak_flops(), 4),
        "dtype": DTYPE.value,
        "processor": processor(),
        **profile,
    }


def kernels(step, state, count, steps=3):
    """[[kernel, instruction, ms a step, share of all kernels' time], ...] of an accelerator, the costliest first."""
    import jax
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(steps):
                state, metrics = step(state)
                float(metrics["loss"][0])
        (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(path))
        spent = collections.Counter()
        for plane in data.planes:
            for line in plane.lines if plane.name.startswith("/device:") else ():
                for event in line.events if line.name.startswith("Stream") else ():
                    spent[event.name, str(dict(event.stats).get("hlo_op", ""))] += event.duration_ns
    total = sum(spent.values())
    row = lambda names, ns: [names[0][:100], names[1], round(ns / steps / 1e6, 3), round(ns / total, 4)]
    return [row(names, ns) for names, ns in spent.most_common(count)]


def device_memory():
    """MB that the accelerator's allocator has held at most; 0 where the device does not tell."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) // 2**20


def compare():
    """Runs every side in turn and gives the medians over rounds, and ours over the faster peer's."""
    settings = [f"--workload={WORKLOAD.value}", f"--steps={STEPS.value}", f"--dtype={DTYPE.value}"]
    own = [sys.executable, "-m", "benchmarks.step", *settings, f"--attention={ATTENTION.value}"]
    sides = {"paradigm": own, **{command: shlex.split(command) for command in PEER.value}}
    lines = {name: [] for name in sides}
    for _ in range(ROUNDS.value):
        for name, command in sides.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            lines[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(lines[name][-1]), flush=True)
    of = lambda key: {name: statistics.median(line[key] for line in rows) for name, rows in lines.items()}
    seconds, memory = of("step_s"), of("peak_rss_mb")
    fastest = min(PEER.value, key=seconds.get)
    return {
        "workload": WORKLOAD.value,
        "step_s": seconds,
        "ratio": round(seconds["paradigm"] / seconds[fastest], 3),
        "peak_rss_mb": memory,
        "memory_ratio": round(memory["paradigm"] / memory[fastest], 3),
        "mfu": statistics.median(line["mfu"] for line in lines["paradigm"]),
        "rounds": ROUNDS.value,
    }


if __name__ == "__main__":
    cli.run(main)
