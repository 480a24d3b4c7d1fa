"""What every text objective does with its hidden states: cross-entropy, accuracy, and bits per byte of text."""

import math

import jax
import jax.numpy as jnp

from paradigm.losses import chunked_cross_entropy
from paradigm.objective import Loss, Term


def output_kernel(model, name, params, adapt=None):
    """float32 [D, V] with logits == hidden @ it, of a text model and its module's name, what an adaptation makes of it
    included."""
    tree = params[name]
    if adapt is not None and "logits" in tree:
        (tree,) = adapt.effective({name: tree}, rf"^{name}/logits/").values()
    return model.output_kernel(tree)


def score_text(hidden, kernel, targets, weights, is_text, text_bytes, z_loss, groups=None):
    """Next-token scores of a batch as a Loss.

    Args:
        hidden: [B, L, D]. kernel: [D, V]; logits are hidden @ kernel.
        targets: int32 [B, L]. weights: float32 [B, L], 0 where nothing is predicted.
        is_text: bool [B, L], which targets spell text; sentinels and specials do not.
        text_bytes: float32 [B], bytes that the text targets spell, 0 for rows of padding.
        z_loss: coefficient of log(Z)^2 in the loss (1e-4 in T5X).
        groups: name -> float32 [B, L] or [B, 1], shares of the targets whose nll is also told by itself, as NAME/nll.

    Returns:
        Loss with the term `cross_entropy` (nats a target, z-loss included) and the metrics `nll` (nats a target),
        `accuracy`, and `bits_per_byte` (bits spent on text targets / bytes that they spell).
    """
    ce = chunked_cross_entropy(hidden, kernel, targets, weights, z_loss=z_loss)
    count = weights.sum()
    metrics = {
        "nll": ((ce.nll * weights).sum(), count),
        "accuracy": ((ce.correct * weights).sum(), count),
        "bits_per_byte": ((ce.nll * weights * is_text).sum() / math.log(2), text_bytes.sum()),
    }
    for name, share in (groups or {}).items():
        metrics[f"{name}/nll"] = ((ce.nll * weights * share).sum(), (weights * share).sum())
    return Loss(terms={"cross_entropy": Term(ce.total, count)}, metrics=metrics)


def score_detection(logits, replaced, weights, coefficient=1.0):
    """Which tokens were replaced, as a Loss.

    Args:
        logits: [B, L], positive where a token is held to be replaced. replaced: bool [B, L]. weights: float32 [B, L].
        coefficient: of the term.

    Returns:
        Loss with the term `detection` (nats a token) and the metrics `detection_accuracy`, `detection_precision` (of
        those held to be replaced, the part that is), `detection_recall` (of those replaced, the part that was found)
        and `replaced` (their share: always answering "original" is right in the rest).
    """
    logits, y = logits.astype(jnp.float32), replaced.astype(jnp.float32)
    nll = jax.nn.softplus(logits) - y * logits
    guess, count = (logits > 0).astype(jnp.float32), weights.sum()
    found, held, real = ((x * weights).sum() for x in (guess * y, guess, y))
    metrics = {
        "detection_accuracy": (((guess == y) * weights).sum(), count),
        "detection_precision": (found, held),
        "detection_recall": (found, real),
        "replaced": (real, count),
    }
    return Loss({"detection": Term((nll * weights).sum(), count, coefficient)}, metrics)


def sample_tokens(hidden, kernel, keys, size, temperature=1.0):
    """A token for each place: int32 [B, P], drawn from the softmax of hidden [B, P, E] @ kernel [E, V] over the first
    `size` ids; no gradient goes through. keys: [B], of the rows."""
    hidden, kernel = jax.lax.stop_gradient((hidden, kernel.astype(hidden.dtype)))
    known = jnp.arange(kernel.shape[1]) < size  # the table's last rows are no tokens

    def at(place):  # one at a time: [B, V] stands, and not [B, P, V]
        n, hidden_BxE = place
        logits = jnp.dot(hidden_BxE, kernel, preferred_element_type=jnp.float32) / temperature
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, n), kernel.shape[1:]))(keys)
        return jnp.argmax(jnp.where(known, logits + noise, -jnp.inf), -1).astype(jnp.int32)  # Gumbel's trick

    return jax.lax.map(at, (jnp.arange(hidden.shape[1]), hidden.swapaxes(0, 1))).swapaxes(0, 1)


def score_pairs(logits, pair, weights):
    """Which of two kinds each pair of texts is, as a Loss: the term `pair` (nats a pair), the metric `pair_accuracy`.

    Args: logits [B, 2]; pair int32 [B]; weights float32 [B].
    """
    logits, count = logits.astype(jnp.float32), weights.sum()
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), pair[:, None], axis=1)[:, 0]
    right = (jnp.argmax(logits, 1) == pair).astype(jnp.float32)
    return Loss({"pair": Term((nll * weights).sum(), count)}, {"pair_accuracy": ((right * weights).sum(), count)})
