"""Greedy and sampled decoding with a cache: one jitted function over fixed shapes, which reads the prompts in one call
and then takes one token a step until every row has said eos."""

import dataclasses
import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import rng
from paradigm.errors import UserError
from paradigm.partition import constrain
from t5like.decode.steps import Reader, batch_of, check_count, fetched, until, written


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most probable at temperature 0, else drawn from softmax(logits / temperature).

    top_k: from so many most probable tokens alone. top_p: from the fewest that hold this share of the probability,
    after temperature and top_k (Holtzman et al. 2020, section 3.1). None: from all. vocab_size: the tokenizer's, where
    a model has more ids than that (rounded up for its mesh): those are never chosen.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    vocab_size: int | None = None

    def __post_init__(self):
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p or 0)):
            if not isinstance(value, numbers.Real):
                raise UserError(f"{name}={value!r}: it is a number")
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature}: 0 takes the most probable token, above 0 draws")
        if self.top_k is not None:
            check_count("top_k", self.top_k, "leave it out, or draw among")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: a share of the probability lies in (0, 1]")
        if self.temperature == 0 and (self.top_k or self.top_p):
            raise UserError("top_k and top_p choose what is drawn from, and temperature=0 draws nothing: raise it")

    def choose(self, logits, keys):
        """logits float32 [B, V], keys [B] -> int32 [B]."""
        logits = logits[:, : self.vocab_size]
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p is not None:
            falling = -jnp.sort(-logits, axis=-1)
            p = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(p, axis=-1) - p  # the most probable token has nothing before it, so it always stays
            least = jnp.min(jnp.where(before < self.top_p, falling, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("objective", "new", "sampling", "prefix", "name"))
def decode(
    objective,
    variables,
    prompts,
    lengths,
    keys,
    new,
    sampling,
    eos_id,
    inputs=None,
    input_segments=None,
    prefix=False,
    filler=0,
    source=None,
    name="model",
):
    """The tokens that follow the prompts.

    Args:
        objective: one whose model is a Decoder, or an EncoderDecoder with `inputs` or with a `source`.
        variables: of objective.apply.
        prompts: int32 [B, P], what the decoder is given: the start id, then tokens; anything after a row's length.
        lengths: int32 [B], the start included.
        keys: typed PRNG keys [B]; a row's draws depend on its own key alone.
        new: how many tokens at most.
        sampling: Sampling.
        eos_id: where a row ends.
        inputs: int32 [B, S], of the encoder. input_segments: int32 [B, S], 0 where they are padding.
        prefix: whether the positions of a prompt see each other (a prefix language model).
        filler: what follows eos.
        source: [B, S, D], what an encoder made of something else than text, such as a picture: what `decode` of the
            module is given in place of encoded inputs. name: of the module that decodes.

    Returns:
        int32 [B, new]: tokens up to eos, eos included, then the filler.
    """
    encoder = inputs is not None or source is not None
    reader = Reader(objective, variables, encoder, input_segments, lengths if prefix else None, name)

    def choose(hidden, step):  # [B, 1, D] -> [B]
        return sampling.choose(reader.logits(hidden), jax.vmap(jax.random.fold_in, (0, None))(keys, step))

    hidden, cache = reader.first(prompts, lengths, new, inputs, source)
    token = choose(hidden, 0)

    def unfinished(state):
        step, _, _, done, _ = state
        return (step < new) & ~jnp.all(done)

    def advance(state):
        step, token, tokens, done, cache = state
        hidden, cache = reader(token[:, None], cache)
        token = jnp.where(done, filler, choose(hidden, step))
        return step + 1, token, tokens.at[:, step].set(token), done | (token == eos_id), cache

    tokens = jnp.full((len(prompts), new), filler, jnp.int32).at[:, 0].set(token)
    tokens = jax.lax.while_loop(unfinished, advance, (1, token, tokens, token == eos_id, cache))[2]
    return constrain(tokens, None, None)  # every process can read it


def decode_rows(
    objective,
    variables,
    prompts,
    new,
    sampling,
    vocabulary,
    seed=0,
    inputs=None,
    prefix=False,
    source=None,
    name="model",
):
    """`decode` for lists of rows of any lengths, on the host.

    Args:
        vocabulary: its start goes before each prompt, and its end id ends a row.
        prompts: list of int arrays, without start; for an EncoderDecoder usually empty.
        inputs: list of int arrays for an EncoderDecoder, eos included. source, name: see `decode`.

    Returns:
        list of int32 arrays, without eos.

    Raises:
        UserError: when the prompt and what follows it pass the learned positions of the model.
    """
    read, lengths, inputs, segments = batch_of(objective, vocabulary, prompts, new, inputs, name)
    if source is not None:
        source = jnp.take(source, jnp.arange(len(read)) % len(prompts), axis=0)
    index = np.stack([np.zeros(len(read)), np.arange(len(read))], axis=1).astype(np.uint32)
    if not isinstance(seed, numbers.Integral):
        raise UserError(f"seed={seed!r}: write a whole number, another one for other draws")
    keys = rng.per_example(rng.key(seed, "decode"), index)
    fixed = new, sampling, vocabulary.end, inputs, segments, prefix, vocabulary.filler, source, name
    count = lambda tokens: written(tokens, vocabulary.end)
    tokens = fetched(decode, len(prompts), count, objective, variables, read, lengths, keys, *fixed)
    return [until(row, vocabulary.end) for row in tokens[: len(prompts)]]
