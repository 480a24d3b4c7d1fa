"""Optimizers from optax that see one layer and one matrix at a time.

    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(grads, opt_state, params, step)  # params + updates are the new parameters

The learning rate and every correction by count read the `step` given (batches consumed); no count is stored. Leaves
below a path component `layers` are stacks of layers: norms, factors and orthogonalisation are taken per layer, so that
a scanned model is updated like its unrolled form. Adafactor and Muon see a kernel of several axes as the matrix that it
is (MATRICES).

opt_state is {moment: tree}, the tree holding the parameters' own paths ('mu/encoder/layers/mlp/up/kernel'), so that
shardings are inherited by path. A moment has its parameter's shape, but for Adafactor's v_row and v_col, which are
[n, rows] and [n, columns] of the matrix in optax's order: v_row has lost the larger axis, the last if both are equal.

Tables are ((regex, value), ...) over parameter paths; the first match wins, the default holds for the rest, and a rule
that matches no parameter is an error.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import optax

from paradigm import trees
from paradigm.errors import UserError
from paradigm.schedule import Schedule, as_schedule

# How many leading axes of one layer's parameter are the rows (inputs) of its matrix, the others being its columns; -1:
# all but the last; 0: not a matrix, whatever its rank. query [D, H, K] is D x HK, out [H, K, D] is HK x D, a
# convolution [h, w, in, out] is (h w in) x out, and LoRA's B [r, H, K] is r x HK.
MATRICES = (
    (r"(^|/)(bias|scale|ia3|lora_magnitude|soft|prefix_key|prefix_value)$|relative_bias/", 0),
    (r"(^|/)((query|key|value)/kernel|lora_b)$", 1),
    ("", -1),
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What the tables say of a parameter. rows: leading axes of one layer's matrix, 0 for a vector."""

    name: str
    stacked: bool
    rows: int
    decay: float
    lr_scale: float | tuple  # one for each layer where they differ

    def view(self, x):
        """One layer's parameter as its matrix [rows, columns], or as a vector."""
        if not self.rows:
            return x.reshape(-1) if x.ndim > 1 else x
        rows = 1
        for n in x.shape[: self.rows]:
            rows *= n
        return x.reshape(rows, -1)


@dataclasses.dataclass(frozen=True)
class LayerDecay:
    """A learning rate that falls from the output to the input (layer-wise decay, Clark et al. 2020, ELECTRA).

    Counted as BEiT's and MAE's code count: layer i of L, from 0, has rate ** (L - i) of it, its own table of relative
    positions too, the embeddings have rate ** (L + 1), and what follows the layers, heads included, has all, as a
    table that all layers share.

    embeddings: regexes of what comes before the layers. L is the depth of the deepest stack beside them.
    """

    rate: float
    embeddings: tuple = (
        r"(^|/)(embed|ids|patches|(\w+_)?positions|token_types|sources|class_token|mask_token|registers|pre_norm)(/|$)",
        r"(^|/)(encoder|decoder|blocks)/project/",
    )

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise UserError(f"LayerDecay.rate={self.rate} must lie above 0 and not above 1")
        trees.check_patterns(self.embeddings, "LayerDecay.embeddings")

    def factors(self, named):
        """{name: a number, or a tuple of one for each layer of a stacked leaf} for [(name, leaf)].

        Raises:
            UserError: when there is no stack of layers.
        """
        folder = lambda parts: "".join(f"{part}/" for part in parts)
        depths = {}
        for name, x in named:
            if trees.is_stacked(name):
                parts = name.split("/")
                depths[folder(parts[: parts.index(trees.STACKED)])] = x.shape[0]
        if not depths:
            raise UserError(f"LayerDecay: no parameter lies in a stack of layers (such as {named[0][0]}): leave it out")

        def factor(name, x):
            if trees.is_stacked(name) or name.endswith("relative_bias/embedding") and x.ndim == 3:  # [layers, E, H]
                return tuple(self.rate ** (len(x) - i) for i in range(len(x)))
            if not any(re.search(pattern, name) for pattern in self.embeddings):
                return 1.0
            parts = name.split("/")
            for end in range(len(parts) - 1, -1, -1):  # the nearest module that holds a stack
                beside = [depth for place, depth in depths.items() if place.startswith(folder(parts[:end]))]
                if beside:
                    return self.rate ** (max(beside) + 1)

        return {name: factor(name, x) for name, x in named}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Base. A subclass gives `transform`.

    learning_rate: float or Schedule, read at the step given.
    weight_decay: float or Schedule; applied to matrices, not to biases, norm scales and relative position biases.
    decay: table of factors on weight_decay, in place of that default.
    lr_scale: table of factors on the learning rate; default 1. layer_decay: a LayerDecay, which multiplies them.
    matrices: table read before MATRICES.
    """

    learning_rate: float | Schedule
    weight_decay: float | Schedule = dataclasses.field(default=0.0, kw_only=True)
    decay: tuple = dataclasses.field(default=(), kw_only=True)
    lr_scale: tuple = dataclasses.field(default=(), kw_only=True)
    layer_decay: LayerDecay | None = dataclasses.field(default=None, kw_only=True)
    matrices: tuple = dataclasses.field(default=(), kw_only=True)

    tables = {"decay": float, "lr_scale": float, "matrices": int}
    sees_matrices = False  # whether `transform` is given matrices instead of kernels of several axes

    def transform(self, leaf, lr, step):
        """The optax transformation of one layer's parameter: gradient -> what is added to the parameter."""
        raise NotImplementedError

    def learning_rate_at(self, step):
        """float32 [], the learning rate of this step before lr_scale."""
        return as_schedule(self.learning_rate)(step)

    def init(self, params):
        """The state before the first step: {moment: tree of the parameters' paths}.

        Raises:
            UserError: a rule that matches no parameter.
        """
        state, lr = {}, self.learning_rate_at(0)
        for leaf, p in zip(self.leaves(params), jax.tree.leaves(params), strict=True):
            moments = self._per_layer(leaf, self._init_one, lr, 0)(p)
            state |= {f"{moment}/{leaf.name}": x for moment, x in moments.items()}
        return trees.nested(state)

    def update(self, grads, opt_state, params, step):
        """(updates, opt_state); updates have the structure, shapes and dtypes of params.

        Args:
            grads, params: trees of one structure. opt_state: from `init` or `update`.
            step: int32 [], batches consumed before this one.
        """
        stored, updates, state = dict(trees.named_leaves(opt_state)), [], {}
        leaves, treedef = jax.tree.flatten(params)
        lr = self.learning_rate_at(step)
        for leaf, g, p in zip(self.leaves(params), jax.tree.leaves(grads), leaves, strict=True):
            names = {moment: f"{moment}/{leaf.name}" for moment in opt_state}
            own = {moment: stored[name] for moment, name in names.items() if name in stored}
            u, own = self._per_layer(leaf, self._update_one, lr, step)(g, own, p)
            updates.append(u.astype(p.dtype))
            state |= {names[moment]: x for moment, x in own.items()}
        return jax.tree.unflatten(treedef, updates), trees.nested(state)

    def leaves(self, params):
        """A Leaf for each parameter, in jax's order.

        Raises:
            UserError: a rule that matches no parameter.
        """
        named = trees.named_leaves(params)
        for table in self.tables:
            for pattern, _ in getattr(self, table):
                if not any(re.search(pattern, name) for name, _ in named):
                    raise UserError(
                        f"{type(self).__name__}.{table}: {pattern!r} matches no parameter (such as {named[0][0]}): "
                        "correct it or leave it out"
                    )
        factors = self.layer_decay.factors(named) if self.layer_decay else {}
        return [self._leaf(name, x, factors.get(name, 1.0)) for name, x in named]

    def _leaf(self, name, x, factor):
        stacked = trees.is_stacked(name)
        rank = len(x.shape) - stacked
        rows = trees.first_match((*self.matrices, *MATRICES), name)
        rows = 0 if rank < 2 else rows + rank if rows < 0 else rows
        decay = trees.first_match(self.decay, name, 1.0 if rows else 0.0)
        scale = float(trees.first_match(self.lr_scale, name, 1.0))
        scale = tuple(scale * f for f in factor) if isinstance(factor, tuple) else scale * factor
        return Leaf(name, stacked, rows, float(decay), scale)

    def _view(self, leaf, x):
        return leaf.view(x) if self.sees_matrices else x

    def _per_layer(self, leaf, fn, lr, step):
        """fn(leaf, lr, step, *arrays of one layer), over the layers of a stack."""
        if isinstance(leaf.lr_scale, tuple):
            one = lambda scale, *arrays: fn(dataclasses.replace(leaf, lr_scale=scale), lr, step, *arrays)
            return functools.partial(jax.vmap(one), jnp.array(leaf.lr_scale))
        one = functools.partial(fn, leaf, lr, step)
        return jax.vmap(one) if leaf.stacked else one

    def _transform(self, leaf, lr, step):
        return self.transform(leaf, leaf.lr_scale * lr, step)

    def _init_one(self, leaf, lr, step, p):
        return _kept(self._transform(leaf, lr, step).init(self._view(leaf, p)), p)

    def _update_one(self, leaf, lr, step, g, own, p):
        tx, shape, g, p = self._transform(leaf, lr, step), p.shape, self._view(leaf, g), self._view(leaf, p)
        updates, state = tx.update(g, _filled(tx.init(p), own, step), p)
        return updates.reshape(shape), {m: x.reshape(own[m].shape) for m, x in _fields(state).items() if m in own}

    def _decayed(self, leaf, step):
        """Adds weight_decay * parameter."""
        if not (self.weight_decay and leaf.decay):
            return optax.identity()
        scheduled = callable(self.weight_decay)
        return optax.add_decayed_weights((self.weight_decay(step) if scheduled else self.weight_decay) * leaf.decay)

    def __post_init__(self):
        for table, kind in self.tables.items():
            trees.check_table(getattr(self, table), f"{type(self).__name__}.{table}", kind)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam (arXiv:1412.6980, algorithm 1) with decoupled weight decay (arXiv:1711.05101), lr * weight_decay * p."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def transform(self, leaf, lr, step):
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.chain(adam, self._decayed(leaf, step), optax.scale_by_learning_rate(lr))


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor, arXiv:1804.04235, algorithms 4 and 5, as T5 used it: without momentum, steps relative to parameters.

    decay_rate: the second moment's decay at step t is 1 - (t + 1)^-decay_rate.
    clipping_threshold: of the update's RMS, per matrix.
    multiply_by_parameter_scale: the step is lr * max(RMS(parameter), 1e-3) * update.
    min_dim_size_to_factor: matrices with a smaller side keep a full second moment.
    Weight decay is decoupled: lr * weight_decay * parameter.
    """

    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128

    sees_matrices = True

    def transform(self, leaf, lr, step):
        return optax.chain(
            optax.scale_by_factored_rms(
                decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor, epsilon=1e-30
            ),
            optax.clip_by_block_rms(self.clipping_threshold),
            optax.scale_by_param_block_rms(1e-3) if self.multiply_by_parameter_scale else optax.identity(),
            self._decayed(leaf, step),
            optax.scale_by_learning_rate(lr),
        )


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion, arXiv:2302.06675, algorithm 2. Its rate is 3 to 10 times smaller than Adam's, its decay as much larger."""

    b1: float = 0.9
    b2: float = 0.99

    def transform(self, leaf, lr, step):
        return optax.chain(
            optax.scale_by_lion(self.b1, self.b2), self._decayed(leaf, step), optax.scale_by_learning_rate(lr)
        )


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum; weight decay is added to the gradient, as the papers that use it mean it (L2)."""

    momentum: float = 0.9
    nesterov: bool = False

    def transform(self, leaf, lr, step):
        momentum = optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()
        return optax.chain(self._decayed(leaf, step), momentum, optax.scale_by_learning_rate(lr))


@dataclasses.dataclass(frozen=True)
class LARS(Optimizer):
    """LARS, arXiv:1708.03888, algorithm 1: a matrix moves by trust_coefficient * its norm / its gradient's norm.

    As in SimCLR's code, weight decay belongs to the gradient, the learning rate enters the momentum, and biases and
    norm scales have neither decay nor trust ratio.
    """

    momentum: float = 0.9
    trust_coefficient: float = 1e-3

    def transform(self, leaf, lr, step):
        trust = optax.scale_by_trust_ratio(trust_coefficient=self.trust_coefficient)
        return optax.chain(
            self._decayed(leaf, step),
            trust if leaf.rows else optax.identity(),
            optax.scale_by_learning_rate(lr),
            optax.trace(self.momentum),
        )


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Muon (github.com/KellerJordan/Muon, muon.py): momentum orthogonalised by Newton-Schulz, for hidden matrices.

    Embeddings, output heads and vectors take AdamW steps at their own learning rate.

    learning_rate, momentum, nesterov, newton_schulz_steps: of the matrices; a step's matrix has singular values near
        sqrt(max(1, columns / rows)).
    consistent_rms: a positive number makes them consistent_rms * sqrt(max(rows, columns)) instead; 0.2 gives matrices
        Adam's RMS, so that one learning rate and decay serve both (Liu et al., arXiv:2502.16982, section 2.2).
    adam_learning_rate, b1, b2, eps: of the others.
    adam: table of True and False, in place of the default: the others are ADAM and whatever is no matrix.
    """

    learning_rate: float | Schedule = 0.02
    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    consistent_rms: float = 0.0
    adam_learning_rate: float | Schedule = 3e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-10
    adam: tuple = ()

    tables = Optimizer.tables | {"adam": bool}
    sees_matrices = True
    ADAM = (
        (r"embedding$|(^|/)(logits|head|predict|classifier|tagger|answerer|segmenter)/", True),
        (r"(^|/)(class_token|mask_token|registers|probe|query|queries)$", True),  # vectors, for all their axes
    )

    def transform(self, leaf, lr, step):
        if not leaf.rows or trees.first_match((*self.adam, *self.ADAM), leaf.name, False):
            adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
            lr = leaf.lr_scale * as_schedule(self.adam_learning_rate)(step)
            return optax.chain(adam, self._decayed(leaf, step), optax.scale_by_learning_rate(lr))
        first = lambda p: optax.TraceState({"mu": jnp.zeros_like(p)})
        muon = optax.GradientTransformation(first, self._orthogonal)
        return optax.chain(muon, self._decayed(leaf, step), optax.scale_by_learning_rate(lr))

    def _orthogonal(self, g, state, params=None):
        """The step of one matrix, and its momentum: an average of gradients, without correction of its first steps."""
        towards = lambda a, b: self.momentum * a + (1 - self.momentum) * b
        mu = towards(state.trace["mu"], g)
        update = newton_schulz(towards(mu, g) if self.nesterov else mu, self.newton_schulz_steps)
        rows, columns = update.shape
        factor = (
            self.consistent_rms * max(rows, columns) ** 0.5 if self.consistent_rms else max(1, columns / rows) ** 0.5
        )
        return update * factor, optax.TraceState({"mu": mu})


def newton_schulz(x, steps=5):
    """A matrix with x's singular vectors and singular values near 1, by a quintic iteration (K. Jordan's Muon)."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


NOT_STORED = ("count",)  # of optax's states: the step is given


def _fields(state):
    """{name: array} of one leaf's optax state."""
    named = {name.rsplit("/", 1)[-1]: x for name, x in trees.named_leaves(state)}
    return {name: x for name, x in named.items() if name not in NOT_STORED}


def _kept(state, p):
    """The fields to store, in the parameter's shape where they have its size; without optax's placeholders [1]."""
    placeholder = lambda x: x.shape == (1,) != p.shape
    shaped = lambda x: x.reshape(p.shape) if x.size == p.size else x
    return {name: shaped(x) for name, x in _fields(state).items() if not placeholder(x)}


def _filled(state, stored, step):
    """One leaf's optax state with what was stored, and the step for its count."""

    def fill(name, x):
        name = name.rsplit("/", 1)[-1]
        return jnp.asarray(step, x.dtype) if name == "count" else stored[name].reshape(x.shape) if name in stored else x

    return trees.named_map(fill, state)
