"""Take a run's weights to the transformers library, or its weights to a run; config.json and model.safetensors.

    python -m launch.convert --workdir=/tmp/demo --out=/tmp/demo_hf --format=hf
    python -m launch.convert --workdir=/tmp/lora --out=/tmp/lora_peft --format=peft
    python -m launch.convert --workdir=/tmp/demo --out=/tmp/slim --format=checkpoint
    python -m launch.convert --weights=/tmp/flan-t5-small --out=/tmp/flan --format=checkpoint
    python -m launch.train --gin_file=runs/mine.gin --workdir=/tmp/mine --init_from=/tmp/flan

T5 v1.0 and v1.1, mT5, UMT5, BART, mBART, BERT, RoBERTa, ELECTRA (generator and discriminator), ModernBERT, GPT-2
(`gpt.style = 'gpt2'`), Llama (`gpt.style = 'rope'`), Mistral, Qwen2 and Qwen3; ViT-MAE, BEiT, DINOv2 with and without
registers, I-JEPA, data2vec, and the ViT of any other image objective, whose heads stay behind; CLIP and SigLIP, and
CoCa as open_clip has it (open_clip_config.json and open_clip_model.safetensors).

The first form writes the weights that evaluation uses, the average where one is kept, and an adaptation (LoRA, IA3)
merged into them; of a run on text its tokenizer too, ours in tokenizer/ and beside the weights what AutoTokenizer
reads; of one on pictures its plain view, as AutoImageProcessor reads it. The second writes an adaptation alone, as the
peft library has it: heads that were trained beside it stay behind. The third writes a run directory of the newest
checkpoint without the optimizer's state: --init_from, launch.evaluate and launch.load read it, and training cannot go
on in it. The fourth writes a checkpoint of parameters alone, and prints the modules that a gin file has to describe;
--init_from reads such a directory itself too. Nothing is written over.
"""

from absl import flags

from launch.run import cli, pretrained
from launch.storage import filesystem
from paradigm.errors import UserError
from paradigm.storage import here

read = pretrained.read
FORMATS = {"hf": ("--workdir",), "peft": ("--workdir",), "checkpoint": ("--workdir", "--weights")}  # what each reads
KEPT = ("config.gin", "environment.json", "metrics.jsonl", "labels.json")  # of a run, beside checkpoints and tokenizer


def main(argv):
    if argv[1:]:
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --workdir={argv[1]}? See --help")
    if not OUT.value:
        raise UserError("--out is required: the directory to write, as in --out=/tmp/exported")
    given = [name for name, value in (("--workdir", WORKDIR.value), ("--weights", WEIGHTS.value)) if value]
    sources = FORMATS[FORMAT.value]
    if len(given) != 1 or given[0] not in sources:
        source = " or ".join(sources)
        raise UserError(
            f"--format={FORMAT.value} reads {source} and nothing else: give {source}=DIR, or the other --format"
        )

    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator may be busy, and nothing is computed here
    if WORKDIR.value:
        write = {"hf": to_hf, "peft": to_peft, "checkpoint": to_parameters}[FORMAT.value]
        print(write(WORKDIR.value, OUT.value, STEP.value))
    else:
        print(to_checkpoint(WEIGHTS.value, OUT.value))


def to_hf(workdir, out, step=None):
    """Writes a run's weights and tokenizer as the transformers library has them; returns what to tell.

    Args:
        workdir: a run directory. out: a directory, new or empty. step: as `launch.load` takes it.

    Raises:
        UserError: as `launch.load` and `paradigm.hf.write`.
    """
    from launch import load

    run = load(workdir, step if step in (None, "best") else _integer(step))
    adapted, run = run.objective.adapt, run.merged()
    out, objective = _empty(out), run.objective
    package = _package(objective)
    left = package.write_objective(out, objective, run.variables()["params"])
    told = f"step {run.step} of {workdir} -> {out}" + (f", without {', '.join(left)}" if left else "")
    told += "" if adapted is None else f", its {type(adapted).__name__} merged"
    ends = package.texts_end(objective)
    remarks = _both_sides(objective) + ([] if ends is None else _tokenizer(run, out, ends))
    return "\n".join([told, *(f"note: {line}" for line in remarks)])


def to_peft(workdir, out, step=None):
    """Writes the adaptation of a run alone as the peft library has it; returns what to tell.

    Args: as `to_hf`.

    Raises:
        UserError: as `launch.load` and `paradigm.hf.peft.write`; a run without an adaptation, or that trained more of
            its base.
    """
    from launch import load
    from paradigm import trees
    from paradigm.hf import peft

    run = load(workdir, step if step in (None, "best") else _integer(step))
    out, adapt = _empty(out), run.objective.adapt
    if adapt is None:
        raise UserError(f"{workdir} is no adapted run: --format=hf writes its weights")
    trained, _ = trees.split(run.params, run.objective.freeze_table(run.experiment.freeze))
    heads = sorted(set(run.objective.heads) & trained.keys())
    own = lambda name: adapt.is_own(name) or name.split("/")[0] in heads
    if changed := [name for name, _ in trees.named_leaves(trained) if not own(name)]:
        raise UserError(
            f"{workdir} trained {changed[0]} of its base too, and an adapter of the peft library would be without it: "
            "--format=hf writes all, merged"
        )
    peft.write(out, pretrained.bodies(run.objective), pretrained.families(), adapt, run.variables()["params"])
    left = f", without {', '.join(heads)}, trained too" if heads else ""
    return f"{type(adapt).__name__} of step {run.step} of {workdir} -> {out}{left}"


def to_parameters(workdir, out, step=None):
    """Writes a run directory of one checkpoint without the optimizer's state; returns what to tell.

    Args: as `to_hf`.

    Raises:
        UserError: as `launch.load`.
    """
    from launch.run import registry
    from launch.storage.checkpoint import FROZEN, Checkpoints
    from launch.storage.workdir import open_run

    source, out = filesystem.as_path(workdir), _empty(out)
    checkpoints, step = open_run(source, step if step in (None, "best") else _integer(step))
    step, arrays, meta = checkpoints.arrays(step, ("step", "bad_steps", "params", "extra", FROZEN))
    experiment = registry.parse_meta(meta, str(checkpoints.directory / str(step)))
    with Checkpoints(out / "checkpoints", 1, experiment.best_metric, experiment.best_mode) as written:
        written.save(step, arrays, meta, checkpoints.meta(step)[1])
    for path in [*(source / name for name in KEPT), *(source / "tokenizer").glob("*")]:
        if path.is_file():
            kept = out / ("tokenizer" if path.parent.name == "tokenizer" else "") / path.name
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(path.read_bytes())
    return f"step {step} of {workdir}, without its optimizer's state -> {out}"


def _package(objective):
    """The hf of the package whose models these are, by what their modules are called."""
    from multimodal import hf as pairs
    from t5like import hf as text
    from vision import hf as images

    names = objective.modules()
    return text if "model" in names else pairs if "text" in names else images


def _both_sides(objective):
    """A line on a Decoder that learned to see tokens after its own, which the library's model does not; or none."""
    from paradigm.capabilities import parts
    from t5like.models import Decoder

    model, _ = objective.modules().get("model", (None, None))
    if type(model) is not Decoder or not any("prefix" in part.objective.batch_spec(1) for part in parts(objective)):
        return []
    name = type(objective).__name__
    return [f"{name} trained its model to read from both sides; the library's reads from the left, and differs there"]


def _tokenizer(run, out, ends):
    """Writes a run's tokenizer as ours in tokenizer/ and as the library's beside the weights; says what differs."""
    from t5like import exported

    run.tokenizer.save(out / "tokenizer")
    try:
        return exported.write(out, run.tokenizer, ends)
    except UserError as error:  # the weights are of use without it
        return [str(error)]


def to_checkpoint(source, out):
    """Writes the transformers library's weights as a checkpoint for --init_from; returns what to tell.

    Args:
        source: a directory of save_pretrained. out: a directory, new or empty.

    Raises:
        UserError: as `paradigm.hf.read`.
    """
    from launch.storage.checkpoint import Checkpoints

    out = _empty(out)
    modules, params = read(source)
    with Checkpoints(out / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params}, {"next_index": 0, "objective": None, "source": str(source)})
    return f"{source} -> --init_from={out}, or under other heads --init_partly_from={out}\n{modules}"


def _empty(out):
    if filesystem.remote(out):
        raise UserError(f"--out={out}: write to a directory of this machine, and copy that")
    out = here(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already and is not written over: choose a new directory")
    return out


def _integer(step):
    if not step.isdecimal():
        raise UserError(f"--step={step}: write a number of steps, or 'best'")
    return int(step)


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string(
        "workdir", None, "A run directory, to be written in the transformers library's format."
    )
    WEIGHTS = flags.DEFINE_string(
        "weights", None, "A directory of the transformers library's save_pretrained, to be read."
    )
    OUT = flags.DEFINE_string("out", None, "The directory to write, new or empty.")
    FORMAT = flags.DEFINE_enum(
        "format",
        "hf",
        list(FORMATS),
        "What to write: hf, or peft (the adaptation alone), from --workdir; checkpoint (parameters) from either.",
    )
    STEP = flags.DEFINE_string(
        "step", None, "Of --workdir: a step, or 'best'. The newest whole checkpoint unless given."
    )
    cli.run(main)
