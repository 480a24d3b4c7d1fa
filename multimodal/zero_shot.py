"""What two towers know without being trained for it: classes named in words, and finding one's pair among many.

Zero-shot classification (Radford et al. 2021, sections 3.1.3 and 3.1.4): the name of each class in every template, the
unit vectors of these sentences averaged and made unit again; a picture is of the class whose vector is nearest.

Retrieval: of all texts, is one of a picture's own among the k nearest, and of all pictures, one of a text's own? Equal
captions are one text, and all pictures that have it are right answers to it, as every caption of a picture is to that
picture; a text counts as often as it was written. Scores within TIE of each other are equal, and an equal wrong answer
counts as a better one: towers that send everything to one point find nothing.

Every number stands beside `chance/...`, of answers drawn blindly given how many are right, and `random/...`, of the
same towers as initialised.
"""

import dataclasses
import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.templates import templates
from paradigm import rng
from paradigm.capabilities import PairEmbedding
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.partition import constrain
from paradigm.records import Subset
from vision.data import known_labels
from vision.probe import BATCH, untrained

TIE = 1e-6  # of cosines in float32
_random = weakref.WeakKeyDictionary()  # data -> {(objective, evaluator): the numbers of the untrained towers}
_untrained = weakref.WeakKeyDictionary()  # data -> {(objective, seed): their variables}


class Compared(Evaluator):
    """An evaluator that gives scores(objective, variables, data) -> (numbers, those of chance)."""

    needs = PairEmbedding

    def run(self, objective, variables, data):
        """({name: number, 'chance/' + name: number, 'random/' + name: number}, [])."""
        part = self.part(objective)
        scores, chances = self.scores(part.objective, part.variables(variables), data)
        found = scores | {f"chance/{name}": chance for name, chance in chances.items()}
        if self.random:
            known = _random.setdefault(data, {})
            if (objective, self) not in known:
                first = part.variables(_first(objective, data, self.seed))
                known[objective, self], _ = self.scores(part.objective, first, data)
            found |= {f"random/{name}": score for name, score in known[objective, self].items()}
        return found, []


def _first(objective, data, seed):
    """Variables of the untrained towers, kept on the host: all evaluators of a run compare with the same."""
    known = _untrained.setdefault(data, {})
    if (objective, seed) not in known:
        known[objective, seed] = jax.device_get(untrained(objective, data, seed))
    return known[objective, seed]


@dataclasses.dataclass(frozen=True)
class ZeroShot(Compared):
    """accuracy of zero-shot classification, `name`, and of the five nearest, `name@5`.

    templates: names of sets (plain, a, photo, clip_7, clip_80, shapes) or sentences with {} for the class.
    robust: add how much hangs on the wording: the accuracy of each template alone, the least of them as `name`/worst,
        their mean as `name`/one, and their standard deviation as `name`/spread.
    split: whose pictures. present: choose among the classes that the split shows, not among all. images: how many
    pictures are used, spread evenly; None for all. random: the comparison with untrained towers. seed: of both.

    Raises UserError for an unknown template, data without names of classes, or pictures without labels.
    """

    templates: tuple[str, ...] = ("photo",)
    split: str = "valid"
    present: bool = False
    images: int | None = None
    name: str = "zero_shot"
    robust: bool = False
    random: bool = True
    seed: int = 0

    counts = ("images",)

    def __post_init__(self):
        super().__post_init__()
        wanted = (self.templates,) if isinstance(self.templates, str) else tuple(self.templates)
        object.__setattr__(self, "templates", wanted)  # gin gives a list
        if len(templates(wanted)) < 2 and self.robust:
            raise UserError("ZeroShot.robust compares templates, and there is one: name several, such as 'clip_7'")

    def check(self, objective, data):
        super().check(objective, data)
        check_names(self, data.records(self.split))
        source = Subset.drawn(data.records(self.split), self.images, self.seed)
        check_labelled(self, known_labels(source), self.split)

    def scores(self, objective, variables, data):
        source = Subset.drawn(data.records(self.split), self.images, self.seed)
        names = check_names(self, data.records(self.split))
        x, y, _ = embed_pictures(objective, variables, source)
        check_labelled(self, y, self.split)
        x, y = x[y >= 0], y[y >= 0]
        chosen = np.unique(y) if self.present else np.arange(len(names))
        each = sentence_vectors(objective, variables, [names[k] for k in chosen], self.templates, data.tokenizer)
        right = np.stack([np.arange(len(y)), np.searchsorted(chosen, y)], axis=1)
        places = ranks(x, averaged(each), right)
        ks = {self.name: 1} | ({f"{self.name}@5": 5} if len(chosen) > 5 else {})
        scores = {name: float(np.mean(places < k)) for name, k in ks.items()}
        chances = {name: k / len(chosen) for name, k in ks.items()}
        if self.robust:
            alone = [float(np.mean(ranks(x, averaged(one), right) < 1)) for one in np.split(each, each.shape[1], 1)]
            found = {"worst": min(alone), "one": float(np.mean(alone)), "spread": float(np.std(alone))}
            scores |= {f"{self.name}/{kind}": number for kind, number in found.items()}
        return scores, chances


@dataclasses.dataclass(frozen=True)
class Retrieval(Compared):
    """R@k both ways, `image_to_text@k` and `text_to_image@k` (see the top of this file).

    ks: the k. split: whose pairs. captions: the first so many of each picture. pairs: how many are searched, spread
    evenly; None for all. chunk: queries and candidates compared at a time, so that no matrix is larger.
    random: the comparison with untrained towers. seed: of both.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    split: str = "valid"
    captions: int = 1
    pairs: int | None = None
    chunk: int = 1024
    random: bool = True
    seed: int = 0

    counts = ("ks", "captions", "pairs", "chunk")

    def __post_init__(self):
        object.__setattr__(self, "ks", tuple(self.ks))  # gin gives a list
        super().__post_init__()

    def check(self, objective, data):
        super().check(objective, data)
        check_captions(data.records(self.split))

    def scores(self, objective, variables, data):
        source = Subset.drawn(data.records(self.split), self.pairs, self.seed)
        x, _, places = embed_pictures(objective, variables, source)
        own = [captions_at(source, place)[: self.captions] for place in places]
        number = {text: k for k, text in enumerate(dict.fromkeys(text for texts in own for text in texts))}
        vectors = embed_texts(objective, variables, list(number), data.tokenizer)
        right = np.array([(i, number[text]) for i, texts in enumerate(own) for text in texts])
        written = np.bincount(right[:, 1], minlength=len(number))
        right = np.unique(right, axis=0)
        before = "" if self.split == "valid" else f"{self.split}/"
        scores, chances = {}, {}
        for way, queries, candidates, pairs, counts in (
            ("image_to_text", x, vectors, right, None),
            ("text_to_image", vectors, x, right[:, ::-1], written),
        ):
            found = ranks(queries, candidates, pairs, self.chunk)
            answers = np.bincount(pairs[:, 0], minlength=len(queries))
            for k in self.ks:
                name = f"{before}{way}@{k}"
                scores[name] = float(np.average(found < k, weights=counts))
                chances[name] = float(np.average(by_chance(answers, len(candidates), k), weights=counts))
        return scores, chances


# ---- embedding -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def towers(objective):
    """(variables, {"image", "aspect"}) -> unit vectors [B, E], and (variables, tokens [B, L]) -> the same of texts."""
    whole = lambda x: constrain(x.astype(jnp.float32), None, None)  # every process has all of it
    return (
        jax.jit(lambda variables, batch: whole(objective.embed_images(variables, objective.view(batch)))),
        jax.jit(lambda variables, tokens: whole(objective.embed_texts(variables, tokens))),
    )


def embed_pictures(objective, variables, source):
    """(unit vectors float32 [N, E], labels int32 [N], places int64 [N]) of the pairs of a source that can be read."""
    embed, xs, labels, places = towers(objective)[0], [], [], []
    dataset = Dataset(source, objective.preprocess, min(BATCH, len(source)), train=False)
    for step in range(len(dataset)):
        batch = dataset.batch(step)
        real = batch["mask"] > 0
        xs.append(np.asarray(embed(variables, {name: batch[name] for name in ("image", "aspect")}))[real])
        labels.append(batch["label"][real])
        places.append(batch["index"][real].astype(np.int64) @ np.array([1 << 32, 1]))
    return np.concatenate(xs), np.concatenate(labels), np.concatenate(places)


def embed_views(objective, variables, source, view, key):
    """Unit vectors float32 [N, E] of random views of the pictures of a source that can be read. view: an Augment."""
    xs, dataset = [], Dataset(source, objective.preprocess, min(BATCH, len(source)), train=False)
    for step in range(len(dataset)):
        batch = dataset.batch(step)
        pictures = batch["image"], objective.aspect(batch)
        x = _random_views(objective, view)(variables, *pictures, rng.per_example(key, batch["index"]))
        xs.append(np.asarray(x)[batch["mask"] > 0])
    return np.concatenate(xs)


@functools.lru_cache(maxsize=8)
def _random_views(objective, view):
    def embed(variables, images, aspects, keys):
        x = objective.embed_images(variables, view(images, aspects, keys))
        return constrain(x.astype(jnp.float32), None, None)  # every process has all of it

    return jax.jit(embed)


def embed_texts(objective, variables, texts, tokenizer=None):
    """Unit vectors float32 [n, E] of texts. tokenizer: the data's, for an objective without one of its own."""
    embed, found = towers(objective)[1], []
    size = min(BATCH, len(texts))
    for start in range(0, len(texts), size):
        tokens = objective.tokenize(texts[start : start + size], tokenizer)
        full = np.concatenate([tokens, np.repeat(tokens[:1], size - len(tokens), axis=0)])  # one shape, one executable
        found.append(np.asarray(embed(variables, full))[: len(tokens)])
    return np.concatenate(found)


def class_vectors(objective, variables, names, wanted="photo", tokenizer=None):
    """Unit vectors float32 [classes, E] of classes by their names, averaged over templates (see the top)."""
    return averaged(sentence_vectors(objective, variables, names, wanted, tokenizer))


def sentence_vectors(objective, variables, names, wanted="photo", tokenizer=None):
    """Unit vectors float32 [classes, templates, E] of the name of each class in each template."""
    sentences = templates(wanted)
    texts = [sentence.replace("{}", name) for name in names for sentence in sentences]
    return embed_texts(objective, variables, texts, tokenizer).reshape(len(names), len(sentences), -1)


def averaged(x):
    """Unit vectors [classes, E] of unit vectors [classes, templates, E]."""
    x = x.mean(1)
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)


def check_names(evaluator, source):
    """The names of a source's classes. Raises UserError where it has none."""
    if not source.classes:
        name = type(evaluator).__name__
        raise UserError(
            f"{name}: the data have no names of classes: set PairData.label, or take it from Experiment.evaluators"
        )
    return source.classes


def check_labelled(evaluator, labels, split):
    """Raises UserError where none of these labels, int [n] with -1 for none, is one. None: nobody knows them yet."""
    if labels is not None and not (labels >= 0).any():
        raise UserError(f"{type(evaluator).__name__}: no picture of the {split} split has a label: set PairData.label")


def check_captions(source):
    """Raises UserError for a source of other records than pairs."""
    if not hasattr(source, "captions"):
        raise UserError("these data have no captions to retrieve: choose pairs, or leave Retrieval and Retrieved out")


def captions_at(source, place):
    """The captions of a record of a Subset, without its picture."""
    check_captions(source.source)
    return source.source.captions(int(source.positions[place]))


# ---- counting --------------------------------------------------------------------------------------------------------


def ranks(queries, candidates, right, chunk=1024):
    """How many wrong candidates are as near as the best right one, or nearer: 0 is found at once.

    Args:
        queries: float32 [Q, E]. candidates: float32 [T, E].
        right: int [R, 2], the (query, candidate) that belong together, each once; every query has one at least.
        chunk: queries and candidates compared at a time.

    Returns:
        int64 [Q].
    """
    right = right[np.lexsort((right[:, 1], right[:, 0]))]
    best = np.full(len(queries), -np.inf, np.float32)
    for part in np.split(right, range(chunk, len(right), chunk)):
        np.maximum.at(best, part[:, 0], np.einsum("re,re->r", queries[part[:, 0]], candidates[part[:, 1]]))
    found = np.zeros(len(queries), np.int64)
    for top in range(0, len(queries), chunk):
        some = queries[top : top + chunk]
        begin, end = np.searchsorted(right[:, 0], (top, top + len(some)))
        limit = best[top : top + chunk, None] - TIE
        for left in range(0, len(candidates), chunk):
            scores = some @ candidates[left : left + chunk].T
            own = right[begin:end] - (top, left)
            own = own[(own[:, 1] >= 0) & (own[:, 1] < scores.shape[1])]
            scores[own[:, 0], own[:, 1]] = -np.inf
            found[top : top + chunk] += (scores > limit).sum(1)
    return found


def by_chance(answers, candidates, k):
    """The probability that k of the candidates, drawn blindly, hold one of the right answers. answers: int [Q]."""
    drawn = np.arange(min(k, candidates))
    return 1 - np.prod(np.maximum(candidates - answers[:, None] - drawn, 0) / (candidates - drawn), axis=1)
