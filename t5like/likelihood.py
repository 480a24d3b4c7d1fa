"""Log-probabilities of the tokens of a sentence, of causal and of masked models, and two evaluators by them.

    causal    log p(x[t] | x[<t])                        their sum is the log-likelihood of the sentence
    masked    log p(x[t] | x with t alone hidden)        their sum is its pseudo-log-likelihood

(Salazar et al. 2020, "Masked Language Model Scoring", sections 2.1 and 2.3). What compares sentences by the sum
compares models of both kinds by one protocol.
"""

import dataclasses
import functools
import json
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from paradigm.capabilities import SentenceScoring
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.storage import expand
from t5like.corrupt import shifted
from t5like.models import Decoder, Encoder

ROUNDED = 16  # sentences are padded to a multiple, so that few lengths are compiled
TOKENS = 4096  # in a batch


def log_probs(objective, variables, sentences):
    """[float32 [n] of each sentence]: of each of its tokens.

    Args:
        objective: of SentenceScoring, with a Decoder or an Encoder. variables: of objective.apply.
        sentences: lists of ids, without cls, sep or start.

    Raises:
        UserError: a model of another kind, a vocabulary without a mask, or a sentence longer than the positions.
    """
    v, model = objective.known, objective.model
    masked, framed = objective.both_sides, isinstance(model, Encoder)
    if not isinstance(model, Encoder | Decoder):
        raise UserError(f"sentences are scored by an Encoder or a Decoder, and the model is a {type(model).__name__}")
    if masked and v.mask is None:
        raise UserError("a masked model scores a token by hiding it, and the tokenizer has no mask: give it specials")
    front, back = ([i for i in (x,) if i is not None] for x in (v.cls, v.sep)) if framed else ((), ())
    moved = lambda x: shifted(x, np.ones(len(x), np.int32), v.start)["inputs"]
    rows = []  # (sentence, ids to read, segments, place, target); causal: one a sentence, all places
    for number, ids in enumerate(sentences):
        whole = np.array([*front, *ids, *back], np.int32)
        if model.positions == "learned" and len(whole) > model.places:
            raise UserError(f"a sentence of {len(whole)} tokens, and the model has {model.places} learned positions")
        if not masked:
            rows.append((number, moved(whole), whole, 0))
            continue
        for place in range(len(front), len(front) + len(ids)):
            hidden = whole.copy()
            hidden[place] = v.mask
            rows.append((number, hidden if framed else moved(hidden), whole, place))
    found = [[] for _ in sentences]
    rows.sort(key=lambda row: len(row[1]))  # neighbours are of a length; places of a sentence keep their order
    start = 0
    while start < len(rows):
        length = -(-len(rows[start][1]) // ROUNDED) * ROUNDED
        length = min(length, model.places) if model.positions == "learned" else length
        count = max(1, TOKENS // length)
        some = [row for row in rows[start : start + count] if len(row[1]) <= length]
        start += len(some)
        pad = lambda x, n: np.pad(x, [(0, n - len(x))] + [(0, 0)] * (np.ndim(x) - 1))
        stack = lambda k: pad(np.stack([pad(row[k], length) for row in some]), count)
        read, whole = stack(1), stack(2)
        segments = pad(np.stack([pad(np.ones(len(row[1]), np.int32), length) for row in some]), count)
        if masked:
            places = pad(np.array([[row[3]] for row in some]), count)
            scores = np.asarray(_masked(objective, variables, read, segments, places, whole))
            for row, score in zip(some, scores):
                found[row[0]].append(score[0])
        else:
            for row, score in zip(some, np.asarray(_causal(objective, variables, read, segments, whole))):
                found[row[0]] = score[: len(row[1])]
    return [np.asarray(scores, np.float32) for scores in found]


@functools.partial(jax.jit, static_argnums=0)
def _causal(objective, variables, read, segments, targets):
    logits, _, _ = objective.apply("model", variables, read, None, segments)
    return _picked(objective, logits, targets)


@functools.partial(jax.jit, static_argnums=0)
def _masked(objective, variables, read, segments, places, whole):
    if isinstance(objective.model, Encoder):
        hidden, _, _ = objective.apply("model", variables, read, None, segments, places, method="hidden")
    else:  # which predicts where the token before is read
        all_see = jnp.full(read.shape[:1], read.shape[1], jnp.int32)
        hidden, _, _ = objective.apply("model", variables, read, None, segments, None, all_see, method="hidden")
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    kernel = objective.output_kernel(variables["params"]).astype(hidden.dtype)
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return _picked(objective, logits, jnp.take_along_axis(whole, places, axis=1))


def _picked(objective, logits, targets):
    known = jnp.arange(logits.shape[-1]) < objective.known.size
    logs = jax.nn.log_softmax(jnp.where(known, logits, -jnp.inf))
    return jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class MinimalPairs(Evaluator):
    """The share of pairs of sentences whose acceptable one the model finds likelier (BLiMP, Warstadt et al. 2020).

    path: a .jsonl file of objects with the fields `good` and `bad`, a folder of such files, or a .zip of them. pairs:
    of each file, the first so many; None: all. name: of the metrics: NAME, the mean over files, and NAME/FILE.

    Raises UserError for files that are not there or hold no pairs, with file and line.
    """

    path: str
    pairs: int | None = 100
    good: str = "sentence_good"
    bad: str = "sentence_bad"
    name: str = "minimal_pairs"

    needs = SentenceScoring

    def check(self, objective, data):
        super().check(objective, data)
        self.read()

    def read(self):
        """{file's name: [(good, bad), ...]}."""
        path, found = expand(self.path), {}
        if not path.exists():
            raise UserError(f"MinimalPairs.path='{self.path}': no such file or directory")
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if n.endswith(".jsonl"))
                files = {n: archive.read(n).decode("utf-8") for n in names}
        else:
            paths = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
            files = {p.name: p.read_text("utf-8") for p in paths}
        for name, text in files.items():
            pairs = []
            for number, line in enumerate(filter(str.strip, text.splitlines()[: self.pairs]), 1):
                try:
                    entry = json.loads(line)
                    pairs.append((entry[self.good], entry[self.bad]))
                except (ValueError, KeyError, TypeError):
                    wanted = f"an object with {self.good!r} and {self.bad!r}"
                    raise UserError(f"MinimalPairs: {self.path}, {name}, line {number} is not {wanted}") from None
            if pairs:
                found[name.rsplit("/", 1)[-1].removesuffix(".jsonl")] = pairs
        if not found:
            raise UserError(f"MinimalPairs: {self.path} holds no pairs: name a .jsonl file, a folder or a .zip of them")
        return found

    def run(self, objective, variables, data):
        part = self.part(objective)
        files, variables = self.read(), part.variables(variables)
        texts = [text for pairs in files.values() for pair in pairs for text in pair]
        ids = [x.tolist() for x in data.tokenizer.encode_batch(texts)]
        totals = iter([float(x.sum(dtype=np.float64)) for x in log_probs(part.objective, variables, ids)])
        right = {name: np.mean([next(totals) > next(totals) for _ in pairs]) for name, pairs in files.items()}
        numbers = {f"{self.name}/{name}": float(x) for name, x in right.items()} if len(right) > 1 else {}
        return {self.name: float(np.mean(list(right.values()))), **numbers}, []


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

    def run(self, objective, variables, data):
        part, source = self.part(objective), data.records("valid")
        count, rows = min(self.windows, len(source)), []
        for record in source.__getitems__([i * len(source) // count for i in range(count)]):
            tokens, segments = (record[name][: self.length] for name in ("tokens", "segments"))
            ids = tokens[(segments == 1) & part.objective.known.is_text(tokens)]
            rows += [(ids, record["byte_lengths"][ids].sum())] if len(ids) else []
        if not rows:
            raise UserError("PseudoPerplexity: the held-out windows that were drawn hold no text: raise its windows")
        found = log_probs(part.objective, part.variables(variables), [ids.tolist() for ids, _ in rows])
        nats = -sum(float(x.sum(dtype=np.float64)) for x in found)
        per_byte = nats / math.log(2) / sum(float(n) for _, n in rows)
        perplexity = math.exp(nats / sum(map(len, found)))
        return {"pseudo/perplexity": perplexity, "pseudo/bits_per_byte": per_byte}, []
