"""Evaluators of how probable sentences are, to models of all kinds (t5like/decode/likelihood.py)."""

import dataclasses
import math

import numpy as np

from paradigm.capabilities import SentenceScoring
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.records import Subset, spread
from paradigm.storage import expand
from t5like import files, rows
from t5like.decode.likelihood import check_longest, log_probs
from t5like.tables import Part


@dataclasses.dataclass(frozen=True)
class MinimalPairs(Evaluator):
    """The share of pairs of sentences whose acceptable one the model finds likelier (BLiMP, Warstadt et al. 2020).

    path: a .jsonl file of objects with the fields `good` and `bad`, a folder of such files, or a .zip or .tar of them,
    each plain or packed. pairs: of each file, so many, spread over it; None: all. name: of the metrics: NAME, the mean
    over files, and NAME/FILE.

    Raises UserError for files that are not there or hold no pairs, with file and line.
    """

    path: str
    pairs: int | None = 100
    good: str = "sentence_good"
    bad: str = "sentence_bad"
    name: str = "minimal_pairs"

    needs = SentenceScoring
    counts = ("pairs",)

    def check(self, objective, data):
        super().check(objective, data)
        check_longest(self.part(objective).objective, self._ids(data))

    def read(self):
        """{file's name: [(good, bad), ...]}."""
        path, found = expand(self.path), {}
        if not path.exists():
            raise UserError(f"MinimalPairs.path='{self.path}': no such file or directory")
        for file in files.walk(path, lambda file: files.unpacked_ending(file.name) in (".jsonl", ".ndjson"))[0]:
            part = Part("jsonl", file.path, file.member, file.size, inside=file.inside, names=file.names)
            with files.reading(files.place_of(file)):
                records = list(rows.rows(part))
            count = len(records) if self.pairs is None else min(self.pairs, len(records))
            pairs = []
            for number, entry in (records[k] for k in spread(len(records), count)):
                wanted = f"an object with {self.good!r} and {self.bad!r}, two texts"
                texts = [entry.get(name) for name in (self.good, self.bad)] if isinstance(entry, dict) else [None]
                if not all(isinstance(text, str) and text for text in texts):
                    raise UserError(f"MinimalPairs: {files.place_of(file)}, line {number} is not {wanted}")
                pairs.append(tuple(texts))
            if not pairs:
                raise UserError(f"MinimalPairs: {files.place_of(file)} holds no pairs: leave it out")
            name = file.member.rsplit("/", 1)[-1].partition(".jsonl")[0]
            found[file.member if name in found else name] = pairs
        if not found:
            raise UserError(f"MinimalPairs: {self.path} holds no pairs: name a .jsonl file, a folder or a .zip of them")
        return found

    def run(self, objective, variables, data):
        part, found = self.part(objective), self.read()
        each = log_probs(part.objective, part.variables(variables), self._ids(data))
        totals = iter([float(x.sum(dtype=np.float64)) for x in each])
        right = {name: np.mean([next(totals) > next(totals) for _ in pairs]) for name, pairs in found.items()}
        numbers = {f"{self.name}/{name}": float(x) for name, x in right.items()} if len(right) > 1 else {}
        return {self.name: float(np.mean(list(right.values()))), **numbers}, []

    def _ids(self, data):
        """[ids of each sentence], a pair's one after the other."""
        texts = [text for pairs in self.read().values() for pair in pairs for text in pair]
        return [x.tolist() for x in data.tokenizer.encode_batch(texts)]


@dataclasses.dataclass(frozen=True)
class PseudoPerplexity(Evaluator):
    """Pseudo-perplexity of held-out text (Salazar et al. 2020, section 2.3; of a causal model its perplexity), each
    window's first document alone.

    windows: how many are read, spread evenly. length: tokens of each.
    Metrics: pseudo/perplexity, exp of the mean over tokens, and pseudo/bits_per_byte.
    """

    windows: int = 16
    length: int = 64

    needs = SentenceScoring
    counts = ("windows", "length")

    def check(self, objective, data):
        super().check(objective, data)
        own = self.part(objective).objective
        check_longest(own, [ids for ids, _ in self._texts(own, data)])

    def _texts(self, objective, data):
        """[(ids, bytes that they spell)] of the windows' first documents."""
        source = data.records("valid")
        count, rows = min(self.windows, len(source)), []
        for record in Subset(source, np.arange(count) * len(source) // count).__getitems__(range(count)):
            tokens, segments = (record[name][: self.length] for name in ("tokens", "segments"))
            ids = tokens[(segments == 1) & objective.known.is_text(tokens)]
            rows += [(ids, record["byte_lengths"][ids].sum())] if len(ids) else []
        if not rows:
            raise UserError("PseudoPerplexity: the held-out windows that were drawn hold no text: raise its windows")
        return rows

    def run(self, objective, variables, data):
        part = self.part(objective)
        rows = self._texts(part.objective, data)
        found = log_probs(part.objective, part.variables(variables), [ids.tolist() for ids, _ in rows])
        nats = -sum(float(x.sum(dtype=np.float64)) for x in found)
        per_byte = nats / math.log(2) / sum(float(n) for _, n in rows)
        perplexity = math.exp(nats / sum(map(len, found)))
        return {"pseudo/perplexity": perplexity, "pseudo/bits_per_byte": per_byte}, []
