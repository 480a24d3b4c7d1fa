"""Compare adaptations of small pre-trained models: adapt, score, tabulate. It goes on where it was stopped.

    python -m benchmarks.adaptation --bases=DIR --workdir=/tmp/adaptation --clinc=DIR --wnut=DIR --text=PREPARED
    python -m benchmarks.adaptation ... --snips=DIR --parallel=FILE.tsv --summaries=FILE.zip --photos=FILE.zip

--bases holds pre-trained runs, as many tokens or pictures as each has read: masked_lm/0, next_token/0 and
span_corruption/0, an encoder, a decoder and an encoder-decoder of one vocabulary (runs/small/base_encoder.gin,
base_decoder.gin and base_encoder_decoder.gin, or others of any width), and eurosat/NAME/0, vision transformers (that of
benchmarks.vision). What is not there leaves its cells empty; `launch.convert --format=checkpoint` makes small ones.
--text is where the text of the first three lies prepared on this machine, for what is forgotten; they know another
place, where they were made elsewhere.

--clinc holds CLINC150's data_full.json, --wnut WNUT-17's train.conll, dev.conll and test.conll, --snips train.jsonl
and test.jsonl; --parallel is a table with columns en and sv, --summaries SciTLDR's files, --photos EuroSAT's. A part
whose data are not given is left out. Each run is an ordinary one: `launch.train` on a file of runs/small with one of
gin_configs/adapt. A method's rate is the best of its own on a validation split with 10 % of the labels, CLINC150's
for each model of texts and EuroSAT's for the first of pictures; scores are of the test splits.
docs/results/adaptation.md and the picture beside it are written anew after each run, of what has run so far;
--part=none writes them alone. What the page has of runs on another machine stays.
"""

import dataclasses
import functools
import itertools
import json
import re
import time

from absl import flags

from benchmarks import adaptation_data as data
from benchmarks import adaptation_page as page
from benchmarks.adaptation_cells import (
    CELLS,
    ENTITIES,
    INTENTS,
    LAND,
    METHODS,
    MODELS,
    PICTURES,
    REQUESTS,
    SUMMARIES,
    TRANSLATION,
    TUNED,
)  # fmt: skip
from benchmarks.compare import command, there
from launch.run import cli
from launch.storage.workdir import bindings
from paradigm.errors import UserError
from paradigm.storage import expand

SHOTS = 5  # examples before a request; fewer where the window of 128 tokens holds no more


def main(argv):
    del argv
    given = {INTENTS: CLINC.value, ENTITIES: WNUT.value, REQUESTS: SNIPS.value, TRANSLATION: PARALLEL.value,
             SUMMARIES: DOCUMENTS.value, LAND: PHOTOS.value}  # fmt: skip
    work = Work(expand(WORKDIR.value).resolve(), there(BASES.value), time.time(), {t: p for t, p in given.items() if p})
    for task, path in work.given.items():
        if task.folder:
            getattr(data, task.folder)(there(path), work.root / "data")
    models = [model for model in (*MODELS, *PICTURES) if work.base(model) is not None]
    if not models:
        raise UserError(f"--bases={BASES.value}: none of masked_lm/0, next_token/0, span_corruption/0 or eurosat/*/0")
    alike = lambda model: [m for m in models if m in PICTURES] if model in PICTURES else [model]
    rates = {(method, model): best_rate(work, method, alike(model)) for method in METHODS for model in models}
    found, shown = {}, functools.partial(page.write, expand(OUT.value), work, rates)
    for part in CELLS:
        for seed in range(SEEDS.value):
            here = [cell for cell in CELLS[part] if cell[1] in models]
            for method, (task, model, share) in itertools.product(METHODS, here):
                train, rate = part in PART.value, rates[method, model]
                run = work.run(task, model, method, rate, share, seed, train=train)
                found[task, model, method, share, seed] = run
                if train:
                    shown(found)
    shown(found)
    print(json.dumps({"wrote": f"{OUT.value}/adaptation.md", "seconds": round(time.time() - work.start)}))


@dataclasses.dataclass(frozen=True)
class Work:
    """root: of all runs. bases: the pre-trained ones. start: of the clock. given: {task: where its data are}."""

    root: object
    bases: object
    start: float
    given: dict

    def base(self, model):
        """The directory of a base; None where it is not there."""
        place = self.bases / model.base / "0"
        return place if (place / "config.gin").exists() else None

    def built(self, model):
        """Bindings that make a task's model as its base is, whatever that was set to."""
        settings = bindings((self.base(model) / "config.gin").read_text())
        own = {name: value for name, value in settings.items() if name.startswith(f"{model.build}.")}
        macros = {name: settings[name] for value in own.values() for name in re.findall(r"%([\w./]+)", value)}
        return [f"{name} = {value}" for name, value in {**macros, **own}.items()]

    def run(self, task, model, method, rate, share, seed, split="test", train=True):
        """launch.results' Run of one adaptation, trained unless that is done already; None where it is not to be."""
        from launch.results import runs

        if method.head and task.objective == "TextToText":
            return None
        if not method.file:  # drawn, models that are built alike are one
            model = next(m for m in (*MODELS, *PICTURES) if self.base(m) and self.built(m) == self.built(model))
        label = task.folder or "eurosat"
        name = f"{label}-{model.name}-{method.name}-{rate:g}-{share:g}-{seed}-{split}".replace(" ", "_")
        place = self.root / name
        if (done := runs.read(place)) is not None and done.ended:
            return done
        if not train or task not in self.given:
            return None
        print(f"{name} · {time.time() - self.start:.0f} s", flush=True)
        kind = "pictures" if model in PICTURES else "texts"
        files, own = getattr(self, f"_{kind}")(task, model, method, share, seed, split)
        own += [f"Cosine.peak = {rate}", f"Experiment.seed = {seed}", *GIN_PARAM.value]
        partly = method.biases and kind == "texts"
        begin = [f"--init_{'partly_' if partly else ''}from={self.base(model)}"] if method.file else []
        files = [f"runs/small/{task.run}.gin", *files]
        flags = [*(f"--gin_file={file}" for file in files), f"--workdir={place}", *begin]
        command("launch.train", *flags, bindings=own)
        return runs.read(place)

    def _texts(self, task, model, method, share, seed, split):
        """(gin files behind the task's, bindings) of a run on records."""
        own = [f"{task.objective}.model = @{model.build}()", *self.built(model)]
        if model.pool and task.objective == "TextClassification":
            own.append(f"TextClassification.pool = {model.pool!r}")
        if method.biases:
            own.append(f"{model.build}.bias = True")
        own += [f"TextRecords.source = {str(self.root / 'data' / split / task.folder)!r}"]
        own += [f"TextRecords.tokenizer = {str(self.base(model))!r}"]
        files = [f"adapt/{method.file}.gin"] if method.file else []
        return files, [*own, f"TextRecords.fraction = {share}", f"TextRecords.fraction_seed = {seed}"]

    def _pictures(self, task, model, method, share, seed, split):
        """The same of one on photographs, whose last evaluation is of all that is held out."""
        source, file = there(self.given[task]), method.pictures or method.file
        own = [*self.built(model), f"ImageData.source = 'zip:{source}'", f"ImageData.hold_out = {split == 'valid'}"]
        own += [f"ImageData.fraction = {share}", f"ImageData.fraction_seed = {seed}", "Experiment.evaluators = ()"]
        own += ["Experiment.eval_batches = 100", "Experiment.eval_every = 320", "Experiment.save_every = 320"]
        return [f"adapt/{file}.gin"] if file else [], own

    def forgotten(self, run, model, method):
        """How much more bits a byte of pre-training's held-out text takes with the adapted model than with the base, as
        a part of 1; None where it has not been measured, and is not to be. Kept in the run."""
        kept, base = run.path / "forgotten.json", self.base(model)
        if not kept.exists():
            if "none" in PART.value or not TEXT.value:
                return None
            alone = ["Experiment.evaluators = ()", f"TextData.source = {str(there(TEXT.value))!r}", *EVALUATED.value]
            bits = lambda *flags, more=(): json.loads(
                command("launch.evaluate", f"--workdir={base}", *flags, bindings=[*alone, *more])
            )["valid/bits_per_byte"]
            before = self.root / f"held_out_{model.base}.json"
            if not before.exists():
                before.write_text(json.dumps(bits()))
            after = bits(f"--adapted={run.path}", more=[f"{model.build}.bias = True"] if method.biases else [])
            kept.write_text(json.dumps({"before": json.loads(before.read_text()), "after": after}))
        bits = json.loads(kept.read_text())
        return bits["after"] / bits["before"] - 1

    def in_context(self, task, model):
        """Accuracy of the decoder itself, to which a few requests with their intents are shown before the one that is
        asked; nothing is trained. None as above."""
        kept = self.root / f"in_context_{task.folder}.json"
        if not kept.exists():
            if "none" in PART.value or task not in self.given or self.base(model) is None or not TEXT.value:
                return None
            records = self.root / "data" / "test" / task.folder
            classes, choices = data.choices(records / "train.jsonl")
            own = [
                f"TextData.source = {str(there(TEXT.value))!r}", "Experiment.eval_batches = 1",
                "Experiment.evaluators = (@MultipleChoice(),)",
                "MultipleChoice.records = @asked/TextRecords()", "MultipleChoice.shown = @shown/TextRecords()",
                f"asked/TextRecords.source = {str(records / 'valid.jsonl')!r}",
                f"shown/TextRecords.source = {str(records / 'train.jsonl')!r}",
                "asked/TextRecords.input = 'Request: {text}\\nIntent: '",
                "shown/TextRecords.input = 'Request: {text}\\nIntent: '",
                "asked/TextRecords.label = 'label'", "shown/TextRecords.label = 'label'",
                f"MultipleChoice.classes = {classes!r}", f"MultipleChoice.choices = {choices!r}",
                f"MultipleChoice.shots = {SHOTS}", "MultipleChoice.length = 128", "MultipleChoice.between = '\\n'",
                *EVALUATED.value,
            ]  # fmt: skip
            found = json.loads(command("launch.evaluate", f"--workdir={self.base(model)}", bindings=own))
            kept.write_text(json.dumps({name.removeprefix("valid/"): x for name, x in found.items()}))
        return json.loads(kept.read_text())


def best_rate(work, method, models):
    """The rate of a method with the best accuracy of the first of models on a validation split, of those that have run
    where no part that has one of the models is to be run."""
    train = any(model in models for part in PART.value for _, model, _ in CELLS.get(part, ()))
    task = LAND if models[0] in PICTURES else INTENTS
    tried = {rate: work.run(task, models[0], method, rate, TUNED, 0, "valid", train) for rate in method.rates}
    done = {rate: run.last("valid/accuracy") for rate, run in tried.items() if run is not None}
    return max(done, key=done.get, default=method.rates[0])


if __name__ == "__main__":
    BASES = flags.DEFINE_string("bases", None, "Where the pre-trained runs are.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go and stay.", required=True)
    CLINC = flags.DEFINE_string("clinc", None, "Where CLINC150's data_full.json is.")
    WNUT = flags.DEFINE_string("wnut", None, "Where WNUT-17's .conll files are.")
    SNIPS = flags.DEFINE_string("snips", None, "Where SNIPS' train.jsonl and test.jsonl are.")
    PARALLEL = flags.DEFINE_string("parallel", None, "A .tsv with columns en and sv.")
    DOCUMENTS = flags.DEFINE_string("summaries", None, "SciTLDR's files, a .zip.")
    PHOTOS = flags.DEFINE_string("photos", None, "EuroSAT's, a .zip of train/ and test/ folders by class.")
    TEXT = flags.DEFINE_string("text", None, "The prepared text of the bases, for what is forgotten.")
    PART = flags.DEFINE_multi_enum("part", list(CELLS), [*CELLS, "none"], "What is run; none: the page alone.")
    SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds.", lower_bound=1)
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding for every run: 'Experiment.total_steps = 300'.")
    EVALUATED = flags.DEFINE_multi_string("eval_param", [], "A binding for what is evaluated on the bases' own text.")
    OUT = flags.DEFINE_string("out", "docs/results", "Where the table and the picture go.")
    cli.run(main)
