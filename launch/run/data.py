"""The data of a run, opened: what the loop trains on, and what evaluators are given."""

import itertools

import jax

from launch.run.loader import batches
from paradigm.capabilities import parts
from paradigm.dataset import Dataset
from paradigm.errors import UserError


class Data:
    """An experiment's training stream and its validation sets.

    train: Dataset, endless. valid[phase]: Dataset, every example once, as that phase of the objective prepares it.
    records(split): the source that "train" or "valid" is read from. tokenizer: of the prepared data, or None.
    fingerprint: changes whenever the training stream would.

    Args:
        experiment: an Experiment.
        directory: where on this machine the recipe may prepare its data; what is there already is used.

    Raises:
        UserError: the data cannot be used, or their tokenizer is not the one that the objective was built for.
    """

    def __init__(self, experiment, directory):
        objective, size, seed = experiment.objective, experiment.batch_size, experiment.seed
        prepared = _build(experiment.data, directory, objective.raw_length)
        self.tokenizer = getattr(prepared, "tokenizer", None)
        for part in parts(objective) if self.tokenizer else ():
            _agree(part.objective, self.tokenizer)
        self.train = Dataset(prepared.source("train"), objective.preprocess, size, seed)
        held_out = prepared.source("valid")
        self.valid = {
            phase: Dataset(held_out, objective.preprocess_for(phase), size, seed, train=False)
            for phase in objective.phases()
        }
        self.records = prepared.source
        self._limit = experiment.eval_batches

    @property
    def fingerprint(self):
        return self.train.fingerprint

    def batches(self, phase=None, rows=slice(None)):
        """The validation batches of a phase (None: the first), numpy, padded with mask 0; at most eval_batches."""
        dataset = next(iter(self.valid.values())) if phase is None else self.valid[phase]
        with batches(dataset, rows=rows) as ahead:
            yield from itertools.islice(ahead, self._limit)


def _build(recipe, directory, window):
    """Prepared by process 0 alone, then opened by all, where the directory is on a file system that they share.

    A run in a bucket has a directory for each of them: then each prepares its own.
    """
    if jax.process_count() == 1:
        return recipe.build(directory, window=window)
    from jax.experimental import multihost_utils

    if jax.process_index() == 0:
        recipe.build(directory, window=window)
    multihost_utils.sync_global_devices("data are prepared")
    return recipe.build(directory, window=window, progress=False)


def _agree(objective, tokenizer):
    """Raises UserError where the objective would read the tokenizer's ids otherwise than they were written."""
    name = type(objective).__name__
    for field in ("vocab_size", "extra_ids"):
        wanted, found = getattr(objective, field, None), getattr(tokenizer, field)
        if wanted not in (None, found):
            raise UserError(f"{name}.{field}={wanted} but the data's tokenizer has {found}: set {name}.{field}={found}")
    for module in ("model", "text"):  # `text`: the text tower beside one for images
        ids = getattr(getattr(objective, module, None), "vocab_size", None)
        if ids is not None and ids < tokenizer.vocab_size:
            raise UserError(
                f"the {module} of {name} has {ids} ids and the data's tokenizer {tokenizer.vocab_size}: "
                f"set the {module}'s vocab_size={tokenizer.vocab_size}"
            )
