"""Beam search with a cache, as the transformers library's generate(num_beams=K, early_stopping=False) does it.

A text of n tokens, its end among them, scores sum_t log p(x[t] | x[<t]) / n ** length_penalty (Wu et al. 2016, section
7, in its simple form). Each step keeps the 2K best continuations of the K texts of a row: those of the first K that end
compete for the K best finished ones, and the best K that do not end go on. A row is done when its best unfinished text,
at its present length, is no better than the worst of K finished ones.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from paradigm.errors import UserError
from paradigm.partition import constrain
from t5like.decode.sampled import Sampling, decode_rows
from t5like.decode.steps import Reader, batch_of, check_count, fetched, until, written

_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Beams:
    """How a text is searched for, where a Sampling would draw it token by token: arguments as of `beam_rows`."""

    beams: int = 4
    length_penalty: float = 1.0


def chosen_by(vocab_size, temperature=0.0, top_k=None, top_p=None, beams=1, length_penalty=1.0):
    """Beams where there is more than one, else a Sampling. Raises UserError for draws and beams at once, and for what
    would choose among beams where there is one."""
    sampling = Sampling(temperature, top_k, top_p, vocab_size)
    if beams == 1 and length_penalty != 1:
        raise UserError(f"length_penalty={length_penalty:g} chooses among the texts of beams: set beams above 1")
    if beams == 1:
        return sampling
    check_count("beams", beams, "1 follows one text, which is greedy: ask for")
    if temperature:
        raise UserError(f"beams={beams} searches and temperature={temperature:g} draws: choose one of them")
    return Beams(beams, length_penalty)


def _rows(tree, index, axis=0):
    return jax.tree.map(lambda x: jnp.take(x, index, axis=axis), tree)


def _of_cache(cache, index):
    """The rows of a cache: `index` has them first, the rest behind the layers."""
    return {"index": cache["index"][index], "decoder": _rows(cache["decoder"], index, 1)}


@functools.partial(jax.jit, static_argnames=("objective", "new", "beams", "length_penalty", "vocab_size", "prefix"))
def beam_search(
    objective,
    variables,
    prompts,
    lengths,
    new,
    beams,
    length_penalty,
    eos_id,
    vocab_size=None,
    inputs=None,
    input_segments=None,
    prefix=False,
    filler=0,
):
    """The best continuations of the prompts.

    Args:
        objective, variables, prompts, lengths, new, eos_id, inputs, input_segments, prefix, filler: as of `decode`.
        beams: K, texts that are followed for each row. vocab_size: the tokenizer's, where the model has more ids.

    Returns:
        (int32 [B, K, new]: tokens up to eos, eos included, then the filler; float32 [B, K]: scores, best first).
    """
    batch = len(prompts)
    reader = Reader(objective, variables, inputs is not None, input_segments, lengths if prefix else None)
    hidden, cache = reader.first(prompts, lengths, new, inputs)
    each = jnp.repeat(jnp.arange(batch), beams)
    hidden, cache = hidden[each], _of_cache(cache, each)
    again = lambda x: None if x is None else x[each]
    reader = Reader(objective, variables, reader.encoder, again(reader.segments), again(reader.visible))
    take = lambda x, index: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def best(state):
        """The next state but for the model's reading, and the texts [B * K] that the next tokens belong to."""
        step, hidden, running, scores, done, done_scores, is_done, open_ = (state[k] for k in KEYS)
        logits = reader.logits(hidden)[:, :vocab_size]
        log_p = jax.nn.log_softmax(logits).reshape(batch, beams, -1) + scores[..., None]
        size = log_p.shape[-1]
        values, where = jax.lax.top_k(log_p.reshape(batch, -1), 2 * beams)  # [B, 2K]
        parents, tokens = where // size, (where % size).astype(jnp.int32)
        texts = take(running, parents).at[:, :, step].set(tokens)
        ends = (tokens == eos_id) | (step == new - 1)
        # Those that end, if they are among the first K.
        finished = ends & (jnp.arange(2 * beams) < beams)
        final = values / (step + 1.0) ** length_penalty
        final = jnp.where(finished & open_[:, None], final, _NEVER)
        done_scores, order = jax.lax.top_k(jnp.concatenate([done_scores, final], 1), beams)
        done = take(jnp.concatenate([done, texts], 1), order)
        is_done = take(jnp.concatenate([is_done, finished], 1), order)
        # Those that go on.
        scores, order = jax.lax.top_k(jnp.where(ends, values + _NEVER, values), beams)
        running, parents, tokens = (take(x, order) for x in (texts, parents, tokens))
        hope = scores[:, 0] / (step + 1.0) ** length_penalty
        worst = jnp.where(is_done.all(1), done_scores.min(1), _NEVER)
        open_ = open_ & (hope > worst)
        state = dict(zip(KEYS, (step + 1, hidden, running, scores, done, done_scores, is_done, open_)))
        return state, (jnp.arange(batch)[:, None] * beams + parents).reshape(-1), tokens.reshape(-1, 1)

    def advance(state):
        cache = state["cache"]
        state, parents, tokens = best(state)
        hidden, cache = reader(tokens, _of_cache(cache, parents))
        return {**state, "hidden": hidden, "cache": cache}

    empty = jnp.full((batch, beams, new), filler, jnp.int32)
    scores = jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER), (batch, 1))  # all texts are one as yet
    never = jnp.full((batch, beams), _NEVER)
    first = (0, hidden, empty, scores, empty, never, jnp.zeros((batch, beams), bool), jnp.ones((batch,), bool))
    state = {**dict(zip(KEYS, first)), "cache": cache}
    going = lambda state: (state["step"] < new - 1) & state["open"].any()
    state = jax.lax.while_loop(going, advance, state)
    last, _, _ = best(state)  # the last token is followed by nothing that the model has to read
    return constrain(last["done"], None, None, None), constrain(last["done_scores"], None, None)


KEYS = ("step", "hidden", "running", "scores", "done", "done_scores", "is_done", "open")


def beam_rows(
    objective, variables, prompts, new, vocabulary, beams=4, length_penalty=1.0, n_best=1, inputs=None, prefix=False
):
    """`beam_search` for lists of rows of any lengths, on the host; arguments as of `decode_rows`.

    beams: texts that are followed for each row. length_penalty: above 0 favours longer texts. n_best: how many of them
    are returned.

    Returns:
        for each row a list of n_best (int32 array without eos, score), best first.

    Raises:
        UserError: fewer beams than texts wanted, or a prompt longer than the positions.
    """
    if not 1 <= n_best <= beams:
        raise UserError(f"n_best={n_best} of beams={beams}: ask for 1 or more, and for no more than there are beams")
    read, lengths, source, segments = batch_of(objective, vocabulary, prompts, new, inputs)
    fixed = new, beams, float(length_penalty), vocabulary.end, vocabulary.size, source, segments, prefix
    count = lambda found: written(found[0][:, 0], vocabulary.end)  # of the best text of each row
    fixed = objective, variables, read, lengths, *fixed, vocabulary.filler
    found = fetched(beam_search, len(prompts), count, *fixed)
    texts, scores = (x[: len(prompts), :n_best] for x in found)
    return [[(until(row, vocabulary.end), float(score)) for row, score in zip(*one)] for one in zip(texts, scores)]


def write_rows(objective, variables, prompts, new, how, vocabulary, seed=0, inputs=None, prefix=False):
    """What is written behind each prompt, a list of int arrays without eos: drawn by a Sampling, or the best that Beams
    find. Arguments as of `decode_rows`."""
    given = {"inputs": inputs, "prefix": prefix}
    if isinstance(how, Sampling):
        return decode_rows(objective, variables, prompts, new, how, vocabulary, seed, **given)
    found = beam_rows(objective, variables, prompts, new, vocabulary, how.beams, how.length_penalty, **given)
    return [best for [(best, _), *_] in found]
