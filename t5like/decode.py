"""Text out of a model: greedy and sampled decoding with a cache, `infill` and `generate` on it, and two evaluators.

`decode` is one jitted function over fixed shapes: it reads the prompts in one call, then takes one token a step until
every row has said eos. Lengths are rounded up to powers of two, so that few programs are compiled.
"""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import rng
from paradigm.capabilities import Generating, Infilling
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.objective import Objective
from paradigm.partition import BATCH, constrain
from t5like.models import Decoder, EncoderDecoder

_BLANK = re.compile(r"( ?)(<[XYZ]>|<extra_id_\d+>)")
_LEAST = 16  # the shortest length that is compiled


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
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature}: 0 takes the most probable token, above 0 draws")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k}: draw among 1 or more tokens, or leave it out")
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


@dataclasses.dataclass(frozen=True)
class ModelAlone(Objective):
    """A text model that no objective trains, for decoding: variables are {"params": {"model": its tree}}."""

    model: Any

    def modules(self):
        return {"model": (self.model, ())}


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
    batch, width = prompts.shape
    apply = functools.partial(objective.apply, name, variables)

    def run(tokens, cache, encoded):
        visible = lengths if prefix else None
        if inputs is None and source is None:
            hidden, intermediates, _ = apply(tokens, prefix=visible, cache=cache, method="hidden")
        else:
            how = {"prefix": visible} if prefix else {}
            hidden, intermediates, _ = apply(
                encoded, tokens, input_segments=input_segments, cache=cache, method="decode", **how
            )
        return hidden, intermediates["cache"]

    def choose(hidden, step):  # [B, 1, D] -> [B]
        logits = apply(hidden, method="score")[0][:, 0]
        return sampling.choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step))

    encoded = source if inputs is None else apply(inputs, None, input_segments, method="encode")[0]
    hidden, cache = run(prompts, objective.modules()[name][0].new_cache(batch, width + new), encoded)
    cache = {
        **cache,
        "index": cache["index"] - width + lengths,
    }  # what the padding of a prompt wrote will be written over before it is seen
    token = choose(jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1), 0)

    def unfinished(state):
        step, _, _, done, _ = state
        return (step < new) & ~jnp.all(done)

    def advance(state):
        step, token, tokens, done, cache = state
        hidden, cache = run(token[:, None], cache, None)
        token = jnp.where(done, filler, choose(hidden, step))
        return step + 1, token, tokens.at[:, step].set(token), done | (token == eos_id), cache

    tokens = jnp.full((batch, new), filler, jnp.int32).at[:, 0].set(token)
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
    if new < 1:
        raise UserError(f"max_new_tokens={new}: ask for 1 or more")
    model, count, rows = objective.modules()[name][0], len(prompts), _whole_rows(len(prompts))
    _check_room(model, max(map(len, prompts)), new, max(map(len, inputs)) if inputs else 0)
    prompts = [np.r_[vocabulary.start, row] for row in prompts]
    width = lambda texts: min(_rounded(max(map(len, texts))), _room(model))
    index = np.stack([np.zeros(rows), np.arange(rows)], axis=1).astype(np.uint32)
    tokens = decode(
        objective,
        variables,
        _padded(prompts, width(prompts), rows, vocabulary.filler),
        np.resize([len(row) for row in prompts], rows).astype(np.int32),
        rng.per_example(rng.key(seed, "decode"), index),
        new,
        sampling,
        vocabulary.end,
        None if inputs is None else _padded(inputs, width(inputs), rows, vocabulary.filler),
        None if inputs is None else _padded([np.ones(len(row)) for row in inputs], width(inputs), rows),
        prefix,
        vocabulary.filler,
        None if source is None else jnp.take(source, jnp.arange(rows) % count, axis=0),
        name,
    )
    tokens = np.asarray(jax.device_get(tokens))[:count]
    ends = [np.flatnonzero(row == vocabulary.end) for row in tokens]
    return [row[: end[0]] if len(end) else row for row, end in zip(tokens, ends)]


def _room(model):
    return model.places if model.positions == "learned" else math.inf


def _check_room(model, prompt, new, inputs=0):
    """Raises UserError where so many tokens pass the learned positions of the model."""
    if max(prompt + new, inputs) > _room(model):
        raise UserError(
            f"a prompt of {inputs or prompt} tokens and max_new_tokens={new} do not fit into "
            f"max_length={_room(model)} positions"
        )


def _rounded(n):
    return max(_LEAST, 1 << (n - 1).bit_length())


def _whole_rows(count):
    """How many rows to compute so that they divide over the mesh, when there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = int(np.prod([size for axis, size in mesh.shape.items() if axis in BATCH])) if not mesh.empty else 1
    return -(-count // ways) * ways


def _padded(rows, width, count, filler=0):
    """int32 [count, width] from rows of any lengths, filled up; the first rows again where there are too few."""
    out = np.full((count, width), filler, np.int32)
    for i in range(count):
        row = rows[i % len(rows)]
        out[i, : len(row)] = row
    return out


# ---- Text in, text out -----------------------------------------------------------------------------------------------


class Infill(NamedTuple):
    """text: with its blanks filled. pieces: what filled them, in the order of the text."""

    text: str
    pieces: tuple

    def __str__(self):
        return self.text


def infill(objective, variables, tokenizer, text, max_new_tokens=64, temperature=0.0, top_k=None, top_p=None, seed=0):
    """Fills the blanks <X>, <Y>, <Z>, <extra_id_3> ... of a text: "The <X> sat on <Y> mat".

    A space before a blank belongs to the blank, since it is the beginning of a word that the model learns to write.

    Args:
        objective: one with an EncoderDecoder that was trained by span corruption. variables: of objective.apply.
        tokenizer: the one that it was trained with.
        max_new_tokens: for all blanks together. temperature, top_k, top_p: see Sampling. seed: of the draws.

    Returns:
        Infill.

    Raises:
        UserError: no blank in the text or one of them twice; a model without an encoder or of another vocabulary.
    """
    _check(objective.model, EncoderDecoder, tokenizer, "infill")
    v = tokenizer.vocabulary
    ids = tokenizer.encode_prompt(_BLANK.sub(r"\2", text))
    blanks = [i for i in ids.tolist() if i in v.sentinels]
    if not blanks:
        raise UserError("infill: there is no blank in the text; write <X>, <Y>, <Z> or <extra_id_3> where one is")
    if len(set(blanks)) < len(blanks):
        twice = next(match[2] for match, i in zip(_BLANK.finditer(text), blanks) if blanks.count(i) > 1)
        raise UserError(f"infill: {twice} stands more than once in the text; give each blank a name of its own")
    sampling, inputs = Sampling(temperature, top_k, top_p, v.size), np.r_[ids, v.end]
    (found,) = decode_rows(objective, variables, [[]], max_new_tokens, sampling, v, seed, [inputs])
    spans = spans_of(found, v)
    spaces = [match[1] for match in _BLANK.finditer(text)]
    pieces = [tokenizer.decode(spans.get(i, [])).removeprefix(space) for i, space in zip(blanks, spaces)]
    filled = iter(pieces)
    return Infill(_BLANK.sub(lambda match: match[1] + next(filled), text), tuple(pieces))


def generate(
    objective,
    variables,
    tokenizer,
    prompt,
    max_new_tokens=64,
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=0,
    prefix=False,
):
    """The prompt and its continuation, to eos or max_new_tokens.

    Args:
        objective: one with a Decoder. variables: of objective.apply. tokenizer: the one that it was trained with.
        temperature, top_k, top_p: see Sampling. seed: of the draws. prefix: for a model trained as a prefix LM.

    Returns:
        str.

    Raises:
        UserError: a prompt longer than the model's positions; a model with an encoder, or of another vocabulary.
    """
    _check(objective.model, Decoder, tokenizer, "generate")
    ids = tokenizer.encode(prompt)
    sampling = Sampling(temperature, top_k, top_p, tokenizer.vocab_size)
    v = tokenizer.vocabulary
    (found,) = decode_rows(objective, variables, [ids], max_new_tokens, sampling, v, seed, prefix=prefix)
    return tokenizer.decode(np.r_[ids, found])


def instead(infills, generates):
    """The end of the sentence "this cannot infill: ...", for a model that can do one of them, or neither."""
    if infills:
        return 'use infill("The <X> sat"), which it can'
    return "use generate(prompt), which it can" if generates else "it can neither infill nor generate"


def _check(model, kind, tokenizer, what):
    if not isinstance(model, kind):
        able = instead(isinstance(model, EncoderDecoder), isinstance(model, Decoder))
        raise UserError(f"{what} does not work with a {type(model).__name__}: {able}")
    if tokenizer.vocab_size > model.vocab_size:
        sizes = f"{tokenizer.vocab_size} ids, but the model {model.vocab_size}"
        raise UserError(f"{what}: the tokenizer has {sizes}; take the one that the model was trained with")


def spans_of(ids, vocabulary):
    """{sentinel id: the ids after it} of a target such as "<X> these truths <Y> self evident"; the first of equals."""
    ids = np.asarray(ids)
    marks = [*np.flatnonzero(np.isin(ids, vocabulary.sentinels)).tolist(), len(ids)]
    spans = {}
    for mark, end in zip(marks, marks[1:]):
        spans.setdefault(int(ids[mark]), ids[mark + 1 : end])
    return spans


# ---- Evaluators ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InfillSamples(Evaluator):
    """Shows validation examples of span corruption: the corrupted text, then each span by the model and in truth.

    count: examples. temperature, top_k, top_p: see Sampling; above a temperature of 0 what is drawn stands beside the
    most probable, which repeats itself. seed: of the draws. </s> is where a document ends.
    """

    count: int = 4
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    needs = Infilling

    def run(self, objective, variables, data):
        """({"infill_exact": the share of the shown spans that are filled as in truth}, [Artefact "infill"])."""
        part = self.part(objective)
        rows, tokenizer = part.examples(data, self.count), data.tokenizer
        inputs = [x[real > 0] for x, real in zip(rows["encoder_inputs"], rows["encoder_segments"])]
        targets = [x[real > 0] for x, real in zip(rows["targets"], rows["segments"])]
        ways = {"model": Sampling(vocab_size=tokenizer.vocab_size)}
        if self.temperature:
            how = Sampling(self.temperature, self.top_k, self.top_p, tokenizer.vocab_size)
            ways[f"at temperature {self.temperature:g}"] = how
        fixed = part.objective, part.variables(variables), [[]] * len(inputs), rows["targets"].shape[1]
        found = [decode_rows(*fixed, way, tokenizer.vocabulary, self.seed, inputs) for way in ways.values()]
        text = lambda ids: _with_ends(tokenizer, ids)
        whole = lambda ids: ids[:-1] if len(ids) and ids[-1] == tokenizer.vocabulary.end else ids  # without its own end
        shown, right, total = [], 0, 0
        for n, (source, target, *ours) in enumerate(zip(inputs, targets, *found), 1):
            truth, *ours = (spans_of(x, tokenizer.vocabulary) for x in (whole(target), *ours))
            shown.append(f"example {n}: {text(whole(source))}")
            for i, span in truth.items():
                wanted, *filled = (text(x) for x in (span, *(spans.get(i, []) for spans in ours)))
                said = "".join(f"  {name}: {x!r}" for name, x in zip((*ways, "truth"), (*filled, wanted)))
                shown.append(f"  {tokenizer.decode([i])}{said}")
                right, total = right + (filled[0] == wanted), total + 1
        return {"infill_exact": right / max(total, 1)}, [Artefact("infill", "text", "\n".join(shown))]


@dataclasses.dataclass(frozen=True)
class GenerateSamples(Evaluator):
    """Shows validation windows: how they begin, how the model goes on, and how the text does.

    count: windows. prompt_tokens: how much of each is given, of its first document. The rest as in `generate`.
    """

    count: int = 4
    prompt_tokens: int = 32
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    needs = Generating

    def check(self, objective, data):
        part = self.part(objective).objective
        _check_room(part.model, min(self.prompt_tokens, part.raw_length - 1), self.max_new_tokens)

    def run(self, objective, variables, data):
        """({}, [Artefact "generate"])."""
        part = self.part(objective)
        rows, tokenizer = part.examples(data, self.count), data.tokenizer
        windows = [tokens[segments == segments[0]] for tokens, segments in zip(rows["targets"], rows["segments"])]
        prompts = [tokens[: min(self.prompt_tokens, max(len(tokens) - 1, 1))] for tokens in windows]
        sampling = Sampling(self.temperature, self.top_k, self.top_p, tokenizer.vocab_size)
        found = decode_rows(
            part.objective,
            part.variables(variables),
            prompts,
            self.max_new_tokens,
            sampling,
            tokenizer.vocabulary,
            self.seed,
            prefix=part.objective.prefix,
        )
        shown = []
        for n, (tokens, prompt, ours) in enumerate(zip(windows, prompts, found), 1):
            truth = tokens[len(prompt) : len(prompt) + self.max_new_tokens]
            shown.append(f"example {n}: {_one_line(tokenizer.decode(prompt))}")
            shown += [
                f"  {name}: {_one_line(tokenizer.decode(x))!r}" for name, x in (("model", ours), ("truth", truth))
            ]
        return {}, [Artefact("generate", "text", "\n".join(shown))]


def _with_ends(tokenizer, ids):
    """A text on one line, with </s> where documents end inside it: `decode` leaves that out."""
    ids, end = np.asarray(ids, np.int64), tokenizer.vocabulary.end
    return "</s>".join(_one_line(tokenizer.decode(x[x != end])) for x in np.split(ids, np.flatnonzero(ids == end)))


def _one_line(text):
    return text.replace("\n", "⏎")
