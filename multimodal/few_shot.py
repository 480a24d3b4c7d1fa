"""What two towers learn from a few labelled pictures of each class, beside what the classes' names tell them.

    logits(x) = s x W^T + alpha exp(-beta (1 - x K^T)) V

x: a picture's unit vector; W: those of the classes' names (zero_shot.py); s: the towers' scale. The cache of N pictures
has keys K, their unit vectors, and values V, their labels as one-hot rows.

tip           Tip-Adapter: nothing is trained (Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for
              Few-shot Classification", section 3.1)
tip_trained   Tip-Adapter-F: K is trained, started from those vectors (section 3.2)
linear        softmax regression on the same pictures' vectors, names unread (paradigm/probing.py)

Constants are the official code's (gaopengcuhk/Tip-Adapter, main.py, utils.py, configs/imagenet.yaml): a key is the mean
over 10 random views, crops of half of the area or more and their mirrors, made unit again; AdamW at 1e-3, eps 1e-4,
cosine to 0, batches of 256, 20 passes, one view of each picture a pass; alpha 1.17 and beta 1 in training, then the
best of 200 values of beta from 0.1 to 7 and 20 of alpha from 0.1 to 3. There the best pass is chosen by the test
pictures and alpha and beta by a validation set. Here the last pass counts, and alpha and beta are chosen by training
pictures that are not in the cache: the test pictures choose nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from multimodal.templates import templates
from multimodal.zero_shot import (
    Compared,
    averaged,
    check_labelled,
    check_names,
    embed_pictures,
    embed_views,
    sentence_vectors,
)
from paradigm import rng
from paradigm.errors import choose
from paradigm.probing import linear
from paradigm.records import Subset
from vision.data import known_labels
from vision.views import own_colours

METHODS = ("tip", "tip_trained", "linear")
ALPHA, BETA = 1.17, 1.0
ALPHAS = 0.1 + np.arange(20) * (3 - 0.1) / 20
BETAS = 0.1 + np.arange(200) * (7 - 0.1) / 200
RATE, EPS, DECAY, BATCH = 1e-3, 1e-4, 0.01, 256  # the decay is that of PyTorch's AdamW
LEAST = 100  # steps of a linear probe
AREA, MIRROR = (0.5, 1.0), 0.5


@dataclasses.dataclass(frozen=True)
class FewShot(Compared):
    """Accuracy with so many labelled pictures of each class, `few_shot/METHOD@SHOTS`.

    methods: of METHODS. shots: numbers of pictures of a class; a smaller number's are among a larger one's, and a class
    that has fewer gives those. templates: of the classes' names, as ZeroShot's. views: random views of which a key is
    the mean; 0: the plain view alone. epochs: passes of what is trained. train_images: that shots are drawn from and
    alpha and beta chosen by; test_images: that are scored, of `split`; both spread evenly, None for all.
    random: the comparison with untrained towers. seed: of what is drawn.

    Raises UserError for an unknown method or template, data without names of classes, or pictures without labels.
    """

    methods: tuple[str, ...] = METHODS
    shots: tuple[int, ...] = (1, 4, 16)
    templates: tuple[str, ...] = ("photo",)
    views: int = 10
    epochs: int = 20
    split: str = "valid"
    train_images: int | None = 10000
    test_images: int | None = 2000
    random: bool = True
    seed: int = 0

    counts = ("shots", "epochs", "train_images", "test_images")

    def __post_init__(self):
        for name in ("methods", "shots", "templates"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str | int) else tuple(value))
        for method in self.methods:
            choose("FewShot.methods", method, dict.fromkeys(METHODS))
        templates(self.templates)
        super().__post_init__()

    def check(self, objective, data):
        super().check(objective, data)
        check_names(self, data.records(self.split))
        for source, split in zip(self.records(data), ("train", self.split)):
            check_labelled(self, known_labels(source), split)

    def records(self, data):
        """(what shots are drawn from, what is scored)."""
        counts = ("train", self.train_images), (self.split, self.test_images)
        return tuple(Subset.drawn(data.records(split), count, self.seed) for split, count in counts)

    def scores(self, objective, variables, data):
        names, (train, test) = check_names(self, data.records(self.split)), self.records(data)
        x, y, places = embed_pictures(objective, variables, train)
        x_test, y_test, _ = embed_pictures(objective, variables, test)
        for split, labels in (("train", y), (self.split, y_test)):
            check_labelled(self, labels, split)
        x_test, y_test = x_test[y_test >= 0], y_test[y_test >= 0]
        words = averaged(sentence_vectors(objective, variables, names, self.templates, data.tokenizer))
        scale, order = float(objective.scale(variables["params"])), drawn(y, self.seed)
        chosen = np.flatnonzero((order >= 0) & (order < max(self.shots)))
        apart = np.flatnonzero(order >= max(self.shots))
        seen = self._views(objective, variables, Subset(train, places[chosen], ""), x[chosen])
        scores = {}
        for shots in self.shots:
            own = order[chosen] < shots
            cache = Cache(seen[:, own], y[chosen][own], words, scale)
            for method in self.methods:
                if method == "linear":
                    rows = x[chosen][own], y[chosen][own]
                    steps = max(LEAST, self.epochs * int(own.sum()) // BATCH)
                    found = linear(*rows, x_test, y_test, len(names), steps, self.seed)
                else:
                    keys = cache.keys if method == "tip" else cache.trained(self.epochs, self.seed)
                    alpha, beta = cache.searched(keys, x[apart], y[apart])
                    found = float(np.mean(np.argmax(cache.logits(keys, x_test, alpha, beta), 1) == y_test))
                scores[f"few_shot/{method}@{shots}"] = found
        return scores, dict.fromkeys(scores, 1 / len(names))

    def _views(self, objective, variables, source, plain):
        """float32 [views, N, E]: unit vectors of the random views of a source's pictures; of the plain view, if 0."""
        if not self.views:
            return plain[None]
        view = own_colours(objective.views[0], crop="random", scale=AREA, ratio=(3 / 4, 4 / 3), flip=MIRROR)
        keys = [rng.key(self.seed, f"few_shot/{i}") for i in range(self.views)]
        return np.stack([embed_views(objective, variables, source, view, key) for key in keys])


def drawn(y, seed):
    """int [N]: for each picture its place among those of its class, in an order drawn by seed; -1 without a label."""
    order, draw = np.full(len(y), -1), np.random.default_rng(seed)
    for label in np.unique(y[y >= 0]):
        own = np.flatnonzero(y == label)
        order[own] = draw.permutation(len(own))
    return order


@dataclasses.dataclass(frozen=True)
class Cache:
    """views: unit vectors [n, N, E] of each picture's views. y: int [N]. words: W [C, E]. scale: s."""

    views: np.ndarray
    y: np.ndarray
    words: np.ndarray
    scale: float

    @property
    def keys(self):
        """K [N, E]."""
        x = self.views.mean(0)
        return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)

    @property
    def values(self):
        """V [N, C]."""
        return np.eye(len(self.words), dtype=np.float32)[self.y]

    def logits(self, keys, x, alpha, beta):
        """float32 [B, C] of unit vectors x [B, E]."""
        return np.asarray(_logits(keys, x, self.values, self.words, self.scale, alpha, beta))

    def searched(self, keys, x, y):
        """(alpha, beta) with which most of these pictures x [T, E], y [T] are right; those of training where T is 0."""
        if not len(x):
            return ALPHA, BETA
        right = np.asarray(_search(keys, x, y, self.values, self.words, self.scale))  # [betas, alphas]
        b, a = np.unravel_index(np.argmax(right), right.shape)
        return float(ALPHAS[a]), float(BETAS[b])

    def trained(self, epochs, seed):
        """K after so many passes over the cache's own pictures."""
        rows, batch = len(self.y), min(BATCH, len(self.y))
        steps = rows // batch  # of a pass; the rest of an order is left out of it
        draw = np.random.default_rng(seed)
        order = np.stack([draw.permutation(rows)[: steps * batch].reshape(steps, batch) for _ in range(epochs)])
        which = np.repeat(np.arange(epochs) % len(self.views), steps)
        order = order.reshape(-1, batch)
        return np.asarray(_train(self.keys, self.views, self.y, self.words, self.scale, order, which))


@jax.jit
def _logits(keys, x, values, words, scale, alpha, beta):
    return scale * x @ words.T + alpha * jnp.exp(-beta * (1 - x @ keys.T)) @ values


@jax.jit
def _search(keys, x, y, values, words, scale):
    """int32 [betas, alphas]: how many are right."""
    near, plain = x @ keys.T, scale * x @ words.T

    def of(beta):
        more = jnp.exp(-beta * (1 - near)) @ values
        return jax.vmap(lambda alpha: jnp.sum(jnp.argmax(plain + alpha * more, 1) == y))(jnp.asarray(ALPHAS))

    return jax.lax.map(of, jnp.asarray(BETAS))


@jax.jit
def _train(keys, views, y, words, scale, order, which):
    """order: int [steps, batch], places in the cache. which: int [steps], the view that is read."""
    values = jax.nn.one_hot(y, len(words))
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, len(order)), eps=EPS, weight_decay=DECAY)

    def nll(keys, at, view):
        logs = jax.nn.log_softmax(_logits(keys, views[view][at], values, words, scale, ALPHA, BETA))
        return -jnp.take_along_axis(logs, y[at][:, None], 1).mean()

    def step(carry, now):
        keys, state = carry
        updates, state = optimizer.update(jax.grad(nll)(keys, *now), state, keys)
        return (optax.apply_updates(keys, updates), state), None

    keys = jnp.asarray(keys)
    return jax.lax.scan(step, (keys, optimizer.init(keys)), (order, which))[0][0]
