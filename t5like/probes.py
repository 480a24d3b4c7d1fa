"""Probes of text encoders: how well labels that no one trained on can be read off a sentence's hidden states.

    knn, linear     as paradigm/probing.py has them, of the mean over a sentence's tokens or the first one's
    attentive       a learned query asks all tokens (paradigm/attentive.py), on the model as it is

The learning rate is chosen on a tenth of the training texts. Features are a layer's hidden states. Every number stands
beside `random/...`, that of the same model as initialised.
"""

import dataclasses
import json

import jax
import numpy as np

from paradigm import rng
from paradigm.attentive import Attentive
from paradigm.capabilities import TextFeatures
from paradigm.errors import UserError, choose
from paradigm.evaluator import Evaluator
from paradigm.probing import attentive, knn, linear
from paradigm.storage import expand
from t5like.features import check_layer, check_pool, read

METHODS = ("knn", "linear", "attentive")


@dataclasses.dataclass(frozen=True)
class TextProbes(Evaluator):
    """Accuracies of probes on labelled sentences.

    source: a .json file, an object of splits, each a list of [text, label] (CLINC150); or a folder with SPLIT.jsonl of
    objects with "text" and "label". train, test: names of the splits. texts: of each split, spread evenly; None: all.
    methods: of METHODS. layer: whose output is read, from 0, negative from the end; None: the model's last, normed.
    pool: mean or cls, of all but attentive. length: tokens of a text; what is longer is cut. epochs, seed: of the
    probes that are trained. random: the comparison with an untrained model.
    Metrics: probe/METHOD, probe/random/METHOD, probe/chance (the commonest label's share).

    Raises UserError for files that are not there or are something else, and labels of one kind only.
    """

    source: str
    train: str = "train"
    test: str = "test"
    texts: int | None = 2000
    methods: tuple = ("knn", "linear")
    layer: int | None = None
    pool: str = "mean"
    length: int = 32
    epochs: int = 20
    seed: int = 0
    random: bool = True

    needs = TextFeatures
    counts = ("texts", "length", "epochs")

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(self.methods))
        for method in self.methods:
            choose("TextProbes.methods", method, dict.fromkeys(METHODS))
        choose("TextProbes.pool", self.pool, dict.fromkeys(("mean", "cls")))

    def check(self, objective, data):
        super().check(objective, data)
        model = self.part(objective).objective.model
        check_layer(model, self.layer, "TextProbes.layer")
        check_pool(model, self.pool, "TextProbes.pool")
        self.read()

    def read(self):
        """((texts, labels int [N]) of the two splits, labels' names)."""
        splits = [self._split(name) for name in (self.train, self.test)]
        names = sorted({label for split in splits for _, label in split})
        if len({label for _, label in splits[0]}) < 2:
            raise UserError(f"TextProbes: all texts of {self.train!r} in {self.source} have one label")
        number = {name: i for i, name in enumerate(names)}
        return [([t for t, _ in s], np.array([number[label] for _, label in s])) for s in splits], names

    def _split(self, split):
        path = expand(self.source)
        try:
            if path.is_dir():
                lines = (path / f"{split}.jsonl").read_text("utf-8-sig").split("\n")  # and not at U+2028
                pairs = [(x["text"], str(x["label"])) for x in map(json.loads, filter(str.strip, lines))]
            else:
                pairs = [(text, str(label)) for text, label in json.loads(path.read_text("utf-8-sig"))[split]]
            if others := [text for text, _ in pairs if not isinstance(text, str)]:
                raise TypeError(f"{others[0]!r} is no text")
        except OSError as error:
            raise UserError(f"TextProbes.source: {error.filename} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError) as error:
            wanted = "a .json of splits of [text, label], or a folder of SPLIT.jsonl with text and label"
            raise UserError(f"TextProbes.source='{self.source}' has no {split!r} as {wanted} ({error!r})") from None
        if not pairs:
            raise UserError(f"TextProbes.source='{self.source}': {split!r} is empty")
        count = len(pairs) if self.texts is None else min(self.texts, len(pairs))
        return [pairs[i * len(pairs) // count] for i in range(count)]

    def run(self, objective, variables, data):
        part = self.part(objective)
        splits, names = self.read()
        encoded = [data.tokenizer.encode_batch(texts) for texts, _ in splits]
        labels = [y for _, y in splits]
        numbers = self._scores(part.objective, part.variables(variables), encoded, labels, len(names))
        if self.random:
            params = jax.jit(objective.init)(rng.key(self.seed, "untrained"))
            first = part.variables({**variables, "params": params})
            found = self._scores(part.objective, first, encoded, labels, len(names))
            numbers |= {f"random/{name}": x for name, x in found.items()}
        numbers["chance"] = np.bincount(labels[1]).max() / len(labels[1])
        return {f"probe/{name}": float(x) for name, x in numbers.items()}, []

    def _scores(self, objective, variables, encoded, labels, classes):
        found, (y, y_test) = {}, labels
        if pooled_ones := [method for method in self.methods if method != "attentive"]:
            x, x_test = [self.features(objective, variables, ids) for ids in encoded]
            steps = max(1, self.epochs * len(x) // 256)
            by = {
                "knn": lambda: knn(x, y, x_test, y_test, classes),
                "linear": lambda: linear(x, y, x_test, y_test, classes, steps, self.seed),
            }
            found = {method: by[method]() for method in pooled_ones}
        if "attentive" in self.methods:
            x, x_test = [self.hidden(objective, variables, ids) for ids in encoded]
            pool, steps = Attentive().module(objective.model), max(1, self.epochs * len(y) // 128)
            found["attentive"] = attentive(x, y, x_test, y_test, classes, pool, steps, self.seed)
        return found

    def features(self, objective, variables, ids):
        """float32 [N, D] of sentences, lists of ids."""
        return self._read(objective, variables, ids, self.pool)[0]

    def hidden(self, objective, variables, ids):
        """(float32 [N, L, D], segments int32 [N, L]) of sentences, lists of ids; 0 is padding."""
        return self._read(objective, variables, ids, None)

    def _read(self, objective, variables, ids, pool):
        model = objective.model
        length = min(self.length, model.places) if model.positions == "learned" else self.length
        return read(objective, variables, ids, length, pool, self.layer)
