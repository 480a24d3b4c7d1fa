"""The data of a run, opened: what the loop trains on, and what evaluators are given."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np

from launch.run.loader import batches
from launch.storage.sync import at_hand
from paradigm import records
from paradigm.dataset import Dataset, Repeated
from paradigm.errors import UserError
from paradigm.records import sample, spread
from paradigm.storage import expand
from t5like.tokenizers import load_tokenizer
from t5like.vocabulary import same

LABELS = "labels.json"  # names of the classes that a run was trained with, in its directory
SPARE = 4  # times as many examples are read as are shown, since some may be broken


class Data:
    """An experiment's training stream and its validation sets.

    train: Dataset, endless. valid[phase]: Dataset, every example once, as that phase of the objective prepares it: all
    that is held out, or, where that is more than eval_batches hold, a sample spread evenly over it, always the same.
    records(split): the source that "train" or "valid" is read from. tokenizer, vocabulary: of the data, or None.
    labels: names of the classes of labelled records, by number; () for others.
    fingerprint: changes whenever the training stream would.

    Args:
        experiment: an Experiment.
        directory: where on this machine the recipe may prepare its data; what is there already is used.
        prepared: what `build` gave for them already; None: nothing has been built.

    Raises:
        UserError: the data cannot be used, or their tokenizer is not the one that the objective was built for.
    """

    def __init__(self, experiment, directory, prepared=None):
        objective, size, seed = experiment.objective, experiment.batch_size, experiment.seed
        prepared = prepared or build(experiment, directory)
        self.tokenizer = prepared.tokenizer
        self.vocabulary = self.tokenizer and self.tokenizer.vocabulary
        same(objective.data_vocabulary, self.vocabulary, "the run", f"the data {prepared.name}".rstrip())
        for line in objective.check_data(prepared):
            print(line, file=sys.stderr, flush=True)
        self.labels = prepared.classes or ()
        train = prepared.source("train")
        train = Repeated(train, prepared.repeats) if prepared.repeats > 1 else train
        self.train = Dataset(train, objective.preprocess, size, seed)
        if said := self.train.check_copies(objective):
            print(f"warning: {said}", file=sys.stderr, flush=True)
        self._held_out = prepared.source("valid")
        self._prepared_for = lambda phase, source, rows: Dataset(
            source, objective.preprocess_for(phase), rows, seed, train=False
        )
        validated = sample(self._held_out, experiment.eval_batches * size)
        self.valid = {phase: self._prepared_for(phase, validated, size) for phase in objective.phases()}
        self.records = prepared.source

    @property
    def fingerprint(self):
        return self.train.fingerprint

    def batches(self, phase=None, rows=slice(None)):
        """The validation batches of a phase (None: the first), numpy, padded with mask 0; at most eval_batches. They
        are in the order of the source: for a few examples of every kind ask `examples`."""
        with batches(self.valid[phase or next(iter(self.valid))], rows=rows) as ahead:
            yield from ahead

    def record(self, index, phase=None):
        """The record that a row of `batches` was made of, by the row's `index`."""
        return self.valid[phase or next(iter(self.valid))].source[int(index[0]) << 32 | int(index[1])]

    def held_out(self, count, phase=None):
        """`count` records of the validation set, spread evenly over it; all where there are no more."""
        source = self.valid[phase or next(iter(self.valid))].source
        return [source[int(i)] for i in spread(len(source), min(count, len(source)))]

    def examples(self, count, phase=None):
        """One batch, numpy, of `count` held-out examples that can be read, spread evenly over all; of fewer where there
        are no more. phase: as in `batches`."""
        some = sample(self._held_out, SPARE * count)
        dataset = self._prepared_for(phase or next(iter(self.valid)), some, SPARE * count)
        with batches(dataset) as ahead:  # which names the broken ones
            batch = next(ahead)
        real = np.flatnonzero(batch["mask"]) if batch["mask"].any() else np.arange(1)  # in place of a broken one
        chosen = real[spread(len(real), min(count, len(real)))]
        return {name: x[chosen] for name, x in batch.items()}


SCHEMES = "folder zip tar idx npz parquet tsv csv beside wds".split()  # of sources that are files


def look(recipe, directory):
    """Raises UserError for a `source` of a recipe, at any depth, that is a path where nothing is.

    It is asked before anything is compiled. Where data were prepared in `directory`, they are used whatever became of
    their source; process 0 asks, for it prepares. What is no plain path is left to the recipe.
    """
    if jax.process_index() or (directory.exists() and any(directory.iterdir())):
        return
    for name, value in named_sources(recipe):
        if not value.strip():
            raise UserError(f"{name}.source is empty: name a file, a folder or another source")
        scheme, colon, path = value.partition(":")
        path = path if colon and scheme in SCHEMES else value
        named = "/" in path or path.startswith("~") or (colon and scheme in SCHEMES) or re.search(r"\.\w+$", path)
        if named and not re.search(r"[*?{,\[]|://|^tfds:", path) and not expand(path).exists():
            what = f"{name}.source='{value}'"
            raise UserError(f"{what}: no such file or directory (looked for {expand(path).absolute()})")


def named_sources(recipe):
    """[(name of a recipe, its `source`)] of a recipe and of those inside it."""
    if isinstance(recipe, tuple | list):
        return [found for one in recipe for found in named_sources(one)]
    if not dataclasses.is_dataclass(recipe):
        return []
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    own = fields.pop("source", None)
    here = [(type(recipe).__name__, own)] if isinstance(own, str) else named_sources(own)
    return here + named_sources(list(fields.values()))


def tokenizer_of(workdir):
    """The tokenizer that a run was trained with, in a run directory; None where there is none."""
    if not (workdir / "tokenizer").is_dir():
        return None
    with at_hand(workdir / "tokenizer") as directory:
        return load_tokenizer(directory)


def labels_of(workdir):
    """The names of the classes that a run was trained with, by number; () where there are none.

    Raises UserError for a file that is damaged.
    """
    path = workdir / LABELS
    if not path.is_file():
        return ()
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise UserError(f"{path} is no list of names: put it back, or go on with the run, which writes it anew")
    return tuple(found)


def vocabulary_of_run(workdir):
    """The Vocabulary that a run was trained with, in a run directory; None where there is none."""
    tokenizer = tokenizer_of(workdir)
    return tokenizer and tokenizer.vocabulary


def build(experiment, directory):
    """What the experiment's recipe gives, prepared in a directory if need be: by process 0 alone, then opened by all,
    where the directory is on a file system that they share.

    A run in a bucket has a directory for each of them: then each prepares its own.
    """
    recipe, window = experiment.data, experiment.objective.raw_length
    if jax.process_count() == 1:
        return records.build(recipe, directory, window, True)
    from jax.experimental import multihost_utils

    if jax.process_index() == 0:
        records.build(recipe, directory, window, True)
    multihost_utils.sync_global_devices("data are prepared")
    return records.build(recipe, directory, window, False)
