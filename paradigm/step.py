"""The train step, once for every objective: gradients, microbatches, clipping, guard, update, extra.

    state, metrics = step(state, batch)

The gradient is that of sum over terms of coefficient * sum / weight with the weights of the WHOLE batch, however the
batch is cut. Everything here is pure: `launch` jits it with shardings, and it compiles from ShapeDtypeStructs alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from paradigm import partition, precision, rng, teacher, trees
from paradigm.errors import UserError
from paradigm.objective import MAIN, Context, Loss, checked_loss
from paradigm.schedule import FINAL, as_schedule


@struct.dataclass
class TrainState:
    """All that a run carries from step to step, and all that a checkpoint holds as arrays.

    step: int32 [], batches consumed, skipped ones too. bad_steps: int32 [], non-finite steps in a row up to now.
    params: what is trained. frozen: the other parameters, nested dicts alike; {} where all are trained.
    extra: the objective's state, and 'ema' when weights are averaged: of what is trained.
    """

    step: jax.Array
    bad_steps: jax.Array
    params: Any
    frozen: Any
    opt_state: Any
    extra: Any

    @property
    def all_params(self):
        """What the objective takes: trained and frozen parameters in one tree."""
        return trees.merge(self.params, self.frozen)

    @property
    def frozen_modules(self):
        """Names of the modules of which nothing is trained."""
        return tuple(sorted(set(self.frozen) - set(self.params)))


def init_state(
    objective, optimizer, seed, ema=None, params=None, freeze=(), param_dtype="float32", moment_dtype="float32"
):
    """The state at step 0, a pure function of the seed. Trace it with jax.eval_shape or jit it with out_shardings.

    params: to start from, in place of the objective's own. freeze: ((regex, bool), ...), the first match counts: the
    parameters that are not trained, beside those of the objective's adaptation. param_dtype, moment_dtype: what the
    matrices among parameters and moments are stored in (precision.py); averages and teachers are float32 all the same.
    """
    params = objective.init(rng.key(seed, "params")) if params is None else params
    extra = dict(objective.init_extra(params, rng.key(seed, "extra")))
    params, frozen = trees.split(params, objective.freeze_table(freeze))
    if ema is not None:
        extra["ema"] = jax.tree.map(jnp.copy, params)
    zero = jnp.zeros((), jnp.int32)
    moments = precision.as_stored(optimizer.init(params), moment_dtype)
    params, frozen = (precision.as_stored(tree, param_dtype) for tree in (params, frozen))
    return TrainState(zero, zero, params, frozen, moments, extra)


def make_train_step(objective, optimizer, *, seed=0, phase=MAIN, microbatches=1, clip=None, ema=None):
    """step(state, batch) -> (state, metrics) for one phase of an objective.

    Args:
        objective: an Objective.
        optimizer: from paradigm.optim; reads the learning rate at state.step.
        seed: the run's, for dropout and other draws on the device.
        phase: which phase this executable is.
        microbatches: equal parts into which the batch is cut, to bound memory; the result does not depend on it.
        clip: bound on the global norm of the gradient (Pascanu et al. 2013), or None.
        ema: decay (float or Schedule of step) of the average of weights in extra['ema'], or None.

    Returns:
        A function for jax.jit. metrics: name -> (sum, weight), float32 scalars that merge by adding. A step whose loss
        or gradient is not finite changes nothing but step and bad_steps, and says so in metrics['bad_step'].

    Raises:
        UserError: microbatches > 1 for an objective that couples the examples of a batch (BatchNorm).
    """

    def step(state, batch):
        if microbatches > 1 and objective.has_batch_norm(state.frozen_modules):
            raise UserError(
                f"{type(objective).__name__} couples the examples of a batch (BatchNorm), so {microbatches} "
                "microbatches would change its loss: set microbatches=1, or use an encoder with LayerNorm"
            )
        ctx = Context(state.step, seed, True, phase, state.frozen_modules)
        own = {k: v for k, v in state.extra.items() if k != "ema"}
        batch = {**batch, **objective.paired(batch)}
        trained = _Trained(objective, state.frozen)
        value, loss, grads = _gradients(trained, state.params, own, batch, ctx, microbatches)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(value) & jnp.isfinite(norm)

        def advance():
            scaled = grads
            if clip is not None:
                factor = jnp.minimum(1.0, clip / (norm + 1e-6))
                scaled = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
            before, moments = precision.full(state.params), precision.full(state.opt_state)
            updates, moments = optimizer.update(scaled, moments, before, state.step)
            key = lambda name: rng.key(seed, f"rounding of {name}", state.step)
            params = precision.store(optax.apply_updates(before, updates), state.params, key("parameters"))
            opt_state = precision.store(moments, state.opt_state, key("moments"))
            extra = objective.update_extra(own, trees.merge(params, state.frozen), loss, ctx)
            if ema is not None:
                extra = {**extra, "ema": teacher.ema(state.extra["ema"], params, as_schedule(ema)(state.step))}
            return params, opt_state, extra

        # A branch and not a select: a select would hold the old and the new state at once, and cost more than AdamW.
        stay = lambda: (state.params, state.opt_state, state.extra)
        params, opt_state, extra = jax.lax.cond(good, advance, stay)
        bad = jnp.where(good, 0, state.bad_steps + 1)
        new = TrainState(state.step + 1, bad, params, state.frozen, opt_state, extra)
        scalars = {
            "loss": value,
            "grad_norm": norm,
            "learning_rate": optimizer.learning_rate_at(state.step),
            "bad_step": ~good,
        }
        metrics = {name: (jnp.float32(x), jnp.float32(1.0)) for name, x in scalars.items()}
        return new, {**metrics, **_report(loss)}

    return step


def make_eval_step(objective, *, seed=0, phase=MAIN, which="online"):
    """evaluate(params, extra, batch) -> metrics: the sums of terms and metrics without update, dropout or augmentation.

    The sum of a term `loss/NAME` carries its coefficient, so that the sum of their means is the loss. params are all of
    them, TrainState.all_params.
    """

    def evaluate(params, extra, batch):
        ctx = Context(jnp.int32(FINAL), seed, False, phase)
        params = objective.variables(params, extra, which)["params"]
        return _report(checked_loss(objective, objective.loss(params, extra, batch, ctx)), all_terms=True)

    return evaluate


def _report(loss, all_terms=False):
    """name -> (sum, weight) of the metrics, and of each term where there are several."""
    terms = loss.terms if all_terms or len(loss.terms) > 1 else {}
    named = {f"loss/{n}": (t.coefficient * t.sum, t.weight) for n, t in terms.items()}
    return {n: (jnp.float32(s), jnp.float32(w)) for n, (s, w) in {**named, **loss.metrics}.items()}


@dataclasses.dataclass(frozen=True)
class _Trained:
    """An objective as a function of its trained parameters alone."""

    objective: Any
    frozen: Any

    @property
    def full_batch(self):
        return self.objective.full_batch

    def loss(self, params, *rest):
        loss = checked_loss(self.objective, self.objective.loss(trees.merge(params, self.frozen), *rest))
        if not loss.terms:
            raise UserError(f"{type(self.objective).__name__}.loss has no term: there is nothing to minimise")
        return loss

    def encode(self, params, *rest):
        return self.objective.encode(trees.merge(params, self.frozen), *rest)

    def full_batch_loss(self, params, *rest):
        return self.objective.full_batch_loss(trees.merge(params, self.frozen), *rest)


def _gradients(objective, params, extra, batch, ctx, microbatches):
    """(value, Loss of the whole batch, gradient)."""
    if microbatches == 1:
        whole = lambda p: (lambda loss: (loss.value(), loss))(objective.loss(p, extra, batch, ctx))
        (value, loss), grads = jax.value_and_grad(whole, has_aux=True)(params)
        return value, loss, precision.full(grads)
    accumulate = _cached_embeddings if objective.full_batch else _decomposed
    loss, grads = accumulate(objective, params, extra, batch, ctx, microbatches)
    return loss.value(), loss, grads


def _decomposed(objective, params, extra, batch, ctx, n):
    """Each microbatch in turn, its sums divided by the whole batch's weights."""
    # Weights do not depend on the parameters, so the compiler drops all of this trace but them.
    weights = objective.loss(params, extra, batch, ctx).weights

    def part(total, micro):
        scaled = lambda p: (lambda loss: (loss.value(weights), loss))(objective.loss(p, extra, micro, ctx))
        grads, loss = jax.grad(scaled, has_aux=True)(params)
        return jax.tree.map(jnp.add, total, grads), loss

    grads, losses = jax.lax.scan(part, precision.full(jax.tree.map(jnp.zeros_like, params)), cut(batch, n))
    return _whole(losses), grads


def _cached_embeddings(objective, params, extra, batch, ctx, n):
    """Embed all microbatches without gradient, differentiate the pair loss at full batch, replay each with vjp.

    Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache), section 3.2.
    """
    micros = cut(batch, n)
    _, (parts, losses) = jax.lax.scan(lambda _, m: (None, objective.encode(params, extra, m, ctx)), None, micros)
    embeddings, decomposes = uncut(parts), _whole(losses)

    def at_full_batch(p, z):
        loss = objective.full_batch_loss(p, extra, z, batch, ctx)
        return loss.value(), loss

    (grads, slopes), pair = jax.grad(at_full_batch, argnums=(0, 1), has_aux=True)(params, embeddings)
    weights = decomposes.weights

    def replay(total, micro_and_slope):
        micro, slope = micro_and_slope

        def encode(p):
            z, loss = objective.encode(p, extra, micro, ctx)
            return z, loss.value(weights)

        _, vjp = jax.vjp(encode, params)
        (grad,) = vjp((slope, jnp.float32(1.0)))
        return jax.tree.map(jnp.add, total, grad), None

    grads, _ = jax.lax.scan(replay, precision.full(grads), (micros, cut(slopes, n)))
    return decomposes.join(pair), grads


def cut(tree, n):
    """[B, ...] -> [n, B/n, ...]. Row i goes to part i mod n: every device keeps rows of its own in every part."""

    def one(x):  # [B, ...] -> [B/n, n, ...] -> [n, B/n, ...]
        if x.shape[0] % n:
            raise UserError(f"a batch of {x.shape[0]} does not divide into {n} microbatches")
        x = x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)
        return partition.constrain(x, None, partition.BATCH, *(None,) * (x.ndim - 2))

    return jax.tree.map(one, tree)


def uncut(tree):
    """The inverse of `cut`."""
    join = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return partition.constrain_rows(jax.tree.map(join, tree))


def _whole(losses):
    """Losses stacked over microbatches -> the whole batch's: sums add, rows return to their order, stats average."""
    add = lambda tree: jax.tree.map(lambda x: x.sum(0), tree)
    terms = {
        k: t.replace(sum=t.sum.sum(0), weight=t.weight.sum(0), coefficient=_first(t.coefficient))
        for k, t in losses.terms.items()
    }
    return Loss(terms, add(losses.metrics), uncut(losses.rows), jax.tree.map(lambda x: x.mean(0), losses.stats))


def _first(x):
    return x[0] if getattr(x, "ndim", 0) else x
