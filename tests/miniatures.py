"""Five miniature objectives that between them use every part of the contract, small enough to check by eye,
and the recipe of data that they learn from.

Each maps rows of 8 numbers through one hidden layer. They exist for tests alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import rng, teacher
from paradigm.combine import Alternate
from paradigm.objective import Loss, Objective, Term, rows_spec
from paradigm.partition import BATCH, constrain
from paradigm.records import Prepared

WIDTH, HIDDEN = 8, 16
RULES = ((r"kernel$", ("fsdp", "tensor")), (r"queue$", (("data", "fsdp"), None)))


@dataclasses.dataclass(frozen=True)
class Rows:
    """preprocess: the record's numbers, doubled at random in training."""

    def __call__(self, example, rng, step, train):
        x = np.float32(example["x"])
        return {"x": x * np.float32(1 + rng.integers(2)) if train else x}


@dataclasses.dataclass(frozen=True)
class Miniature(Objective):
    name: str = "encoder"

    @property
    def preprocess(self):
        return Rows()

    @property
    def partition_rules(self):
        return RULES

    def batch_spec(self, batch_size, phase=None):
        return {**rows_spec(batch_size), "x": jax.ShapeDtypeStruct((batch_size, WIDTH), jnp.float32)}

    def init(self, key):
        names = {"in": (WIDTH, HIDDEN), "out": (HIDDEN, HIDDEN)}
        kernels = {n: {"kernel": 0.5 * jax.random.normal(rng.key(0, n), s)} for n, s in names.items()}
        return {self.name: kernels}

    def modules(self):
        return {}

    def features(self, params, x, keys=None):
        """[B, 8] -> [B, 16], with dropout of one half by example where keys are given."""
        p = params[self.name]
        h = constrain(jnp.tanh(x @ p["in"]["kernel"]), BATCH, "tensor")
        if keys is not None:
            h *= 2.0 * jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (HIDDEN,)))(keys)
        return constrain(h @ p["out"]["kernel"], BATCH, None)

    def forward_flops(self, batch_spec):
        return {self.name: 2.0 * batch_spec["x"].shape[0] * (WIDTH * HIDDEN + HIDDEN * HIDDEN)}


@dataclasses.dataclass(frozen=True)
class TwoTerms(Miniature):
    """Two terms with different denominators: rows for one, positive inputs for the other."""

    def loss(self, params, extra, batch, ctx):
        keys = ctx.keys("dropout", batch["index"]) if ctx.train else None
        y = self.features(params, batch["x"], keys)
        mask = batch["mask"]
        positive = (batch["x"] > 0) * mask[:, None]
        energy = Term(jnp.sum(jnp.square(y).mean(-1) * mask), mask.sum())
        recall = Term(jnp.sum(jnp.square(y[:, :WIDTH] - batch["x"]) * positive), positive.sum(), 0.1 + 0.01 * ctx.step)
        return Loss({"energy": energy, "recall": recall}, {"positive": (positive.sum(), mask.sum() * WIDTH)})


def unit(x):
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class BothEncoders(TwoTerms):
    """The same with parameters that no other miniature has."""

    def init(self, key):
        return {**super().init(key), **Miniature("spare").init(key)}


@dataclasses.dataclass(frozen=True)
class TeacherQueue(Miniature):
    """A momentum teacher and a queue of its keys, as in MoCo."""

    length: int = 32

    def init_extra(self, params, key):
        queue = unit(jax.random.normal(key, (self.length, HIDDEN)))
        return {"teacher": jax.tree.map(jnp.copy, params), "queue": queue, "cursor": jnp.zeros((), jnp.int32)}

    def loss(self, params, extra, batch, ctx):
        q = unit(self.features(params, batch["x"], ctx.keys("dropout", batch["index"]) if ctx.train else None))
        k = jax.lax.stop_gradient(unit(self.features(extra["teacher"], batch["x"])))
        logits = jnp.concatenate([jnp.sum(q * k, -1, keepdims=True), q @ extra["queue"].T], -1) / 0.2
        nll = jax.nn.logsumexp(logits, -1) - logits[:, 0]
        term = Term(jnp.sum(nll * batch["mask"]), batch["mask"].sum())
        return Loss({"contrast": term}, rows={"keys": k})

    def update_extra(self, extra, params, loss, ctx):
        queue, cursor = teacher.push(extra["queue"], extra["cursor"], loss.rows["keys"])
        return {"teacher": teacher.ema(extra["teacher"], params, 0.9), "queue": queue, "cursor": cursor}

    def variables(self, params, extra, which="online"):
        return {"params": extra["teacher"]} if which == "teacher" else super().variables(params, extra, which)


@dataclasses.dataclass(frozen=True)
class BatchStatistics(Miniature):
    """BatchNorm in a head that sees the whole batch; running moments in extra."""

    full_batch = True

    def init_extra(self, params, key):
        return {"mean": jnp.zeros(HIDDEN), "square": jnp.ones(HIDDEN)}

    def encode(self, params, extra, batch, ctx):
        return self.features(params, batch["x"]), Loss()

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        moments = {"mean": embeddings.mean(0), "square": jnp.square(embeddings).mean(0)} if ctx.train else extra
        z = (embeddings - moments["mean"]) * jax.lax.rsqrt(moments["square"] - moments["mean"] ** 2 + 1e-2)
        error = jnp.square(z[:, :WIDTH] - batch["x"]).mean(-1)
        return Loss({"error": Term(jnp.sum(error * batch["mask"]), batch["mask"].sum())}, stats=moments)

    def update_extra(self, extra, params, loss, ctx):
        return teacher.ema(extra, dict(loss.stats), 0.9)


@dataclasses.dataclass(frozen=True)
class RunningStatistics(BatchStatistics):
    """The same with its moments where models with BatchNorm keep them. still: they stay as they are."""

    still: bool = False

    def init_extra(self, params, key):
        return {"batch_stats": super().init_extra(params, key)}

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        return super().full_batch_loss(params, extra["batch_stats"], embeddings, batch, ctx)

    def update_extra(self, extra, params, loss, ctx):
        return extra if self.still else {"batch_stats": super().update_extra(extra["batch_stats"], params, loss, ctx)}


@dataclasses.dataclass(frozen=True)
class CoupledStatistics(BatchStatistics):
    """The same with its BatchNorm declared inside the encoder: it cannot be cut into microbatches."""

    full_batch = False

    def has_batch_norm(self, frozen=()):
        return self.name not in frozen

    def loss(self, params, extra, batch, ctx):
        return self.full_batch_loss(params, extra, self.features(params, batch["x"]), batch, ctx)


@dataclasses.dataclass(frozen=True)
class CachedPairs(Miniature):
    """Every row is to find itself among all rows of the batch, plus a term that decomposes over rows."""

    full_batch = True

    def encode(self, params, extra, batch, ctx):
        y = self.features(params, batch["x"], ctx.keys("dropout", batch["index"]) if ctx.train else None)
        other = self.features(params, -batch["x"])
        size = Term(jnp.sum(jnp.square(y).mean(-1) * batch["mask"]), batch["mask"].sum(), 0.1)
        return {"a": unit(y), "b": unit(other)}, Loss({"size": size})

    def full_batch_loss(self, params, extra, embeddings, batch, ctx):
        logits = embeddings["a"] @ embeddings["b"].T / 0.5  # [B, B]
        mask = batch["mask"]
        logits = jnp.where(mask[None, :] > 0, logits, -1e9)
        nll = jax.nn.logsumexp(logits, -1) - jnp.diagonal(logits)
        right = (jnp.argmax(logits, -1) == jnp.arange(len(mask))) * mask
        return Loss({"pairs": Term(jnp.sum(nll * mask), mask.sum())}, {"accuracy": (right.sum(), mask.sum())})


@dataclasses.dataclass(frozen=True)
class Signs(Miniature):
    """A second task on the same encoder whose batch has another entry: the signs of the inputs."""

    @property
    def preprocess(self):
        return SignRows()

    def batch_spec(self, batch_size, phase=None):
        signs = jax.ShapeDtypeStruct((batch_size, WIDTH), jnp.int32)
        return {**super().batch_spec(batch_size), "signs": signs}

    def loss(self, params, extra, batch, ctx):
        y = self.features(params, batch["x"])[:, :WIDTH]
        nll = jax.nn.softplus(-y * batch["signs"]).mean(-1)
        return Loss({"signs": Term(jnp.sum(nll * batch["mask"]), batch["mask"].sum())})


@dataclasses.dataclass(frozen=True)
class SignRows:
    def __call__(self, example, rng, step, train):
        x = np.float32(example["x"])
        return {"x": x, "signs": np.where(x > 0, 1, -1).astype(np.int32)}


def alternating():
    return Alternate(parts=(("recall", TwoTerms()), ("signs", Signs())), pattern=("recall", "recall", "signs"))


ALL = {
    "two_terms": TwoTerms(),
    "teacher_queue": TeacherQueue(),
    "batch_statistics": BatchStatistics(),
    "cached_pairs": CachedPairs(),
    "alternating": alternating(),
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A Source of `count` records {"x": [8] float32}."""

    count: int = 100
    fingerprint: str = "numbers"

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"x": np.random.default_rng(i).normal(size=WIDTH).astype(np.float32)}

    def __getitems__(self, indices):
        return [self[i] for i in indices]


@dataclasses.dataclass(frozen=True)
class NumbersData(Prepared):
    """A recipe of `train` and `valid` records of six numbers."""

    train: int = 100
    valid: int = 37

    def build(self, cache_dir, window=None, progress=True):
        return self

    def source(self, split):
        return Numbers(getattr(self, split), f"numbers {split}")
