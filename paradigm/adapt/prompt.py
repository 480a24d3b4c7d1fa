"""Soft tokens: learned vectors that stand before a text or an image's patches.

input      before the first layer (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning",
           section 2; VPT-shallow, Jia et al. 2022, "Visual Prompt Tuning", section 3.2)
layers     others before every layer, whose outputs are dropped (VPT-deep, the same section); for encoders of images
attention  keys and values before those of every layer's attention to itself (Li and Liang 2021, "Prefix-Tuning",
           section 4; P-tuning v2, Liu et al. 2022, section 3), without the network that some compute them by

Every token sees them, whatever its document; tokens keep their order and their causal structure, and are scored at the
places where they were. In a text model the tokens' positions begin after them, learned and rotary ones too, as in the
peft library. In a causal model they see themselves alone; in an encoder all of the row, so that a row should be one
text. A decoder's attention to a source sees the soft tokens that its encoder read.

They cannot begin as nothing: of all methods here this one alone does not begin as the base.
"""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from paradigm import trees
from paradigm.adapt.base import Adaptation, module_path
from paradigm.attention import pad_bias
from paradigm.errors import UserError, choose
from paradigm.partition import BATCH, constrain
from paradigm.transformer import Block, Stack

SOFT, KEY, VALUE = "soft", "prefix_key", "prefix_value"
FIRST = "first"  # in a decoder's cache: no soft token is in it yet
FREQUENT = 5000  # Lester et al. 2021, section 3.2: drawn from the most common tokens, which have the lowest ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTuning(Adaptation):
    """Soft tokens before the input, every layer, or every layer's keys and values.

    length: how many. place: input, layers or attention (see above).
    start: random (normal of deviation `std`), or vocabulary, embeddings of tokens drawn from the 5000 first ids
        (section 3.2 of Lester et al.); what is trained is then the difference from these.
    text: what the task is, in words whose tokens they begin as (peft's PromptTuningInit.TEXT): in a run by the
        tokenizer of its data, without an id before or behind it; repeated, or cut, to `length` as in peft. tokens: its
        ids themselves.
    std: 0.5 and less keep to the size of embeddings; 1.0 is peft's.
    where: regex on the stacks' names: '^text/' of two towers, 'decoder' of an encoder-decoder, whose encoder alone has
        them unless it says so.
    """

    length: int = 20
    place: str = "input"
    start: str = "random"
    text: str = ""
    tokens: tuple[int, ...] = ()
    std: float = 0.02
    where: str = ""

    own = (SOFT, KEY, VALUE)
    lengthens = True
    carriers = "puts soft tokens before a transformer's"
    partition_rules = (
        (r"(^|/)soft$", (None, "fsdp")),
        (r"/prefix_(key|value)$", (None, "tensor", "fsdp?")),
    )

    def __post_init__(self):
        super().__post_init__()
        choose("PromptTuning.place", self.place, dict.fromkeys(("input", "layers", "attention")))
        choose("PromptTuning.start", self.start, dict.fromkeys(("random", "vocabulary")))
        trees.check_patterns([self.where], "PromptTuning.where")
        if self.length < 1:
            raise UserError(f"PromptTuning.length={self.length} must be at least 1")
        if self.text and self.tokens:
            raise UserError("PromptTuning.text and PromptTuning.tokens are two ways to say one thing: give one of them")
        if (self.text or self.tokens or self.start != "random") and self.place != "input":
            raise UserError(f"PromptTuning: tokens begin as embeddings at the input, not with place={self.place!r}")

    @property
    def lacks_words(self):
        return bool(self.text)

    def worded(self, encode):
        if not self.text:
            return self
        if not (ids := tuple(map(int, encode(self.text)))):
            raise UserError(f"PromptTuning.text={self.text!r} has no tokens: write what the task is")
        return dataclasses.replace(self, text="", tokens=ids)

    @property
    def soft_tokens(self):
        """Places that they need in a decoder's cache."""
        return self.length if self.place == "input" else 0

    @property
    def shift(self):
        """How far they move a text's positions."""
        return 0 if self.place == "layers" else self.length

    def settings_of(self, name):
        tokens = self.tokens or self.text
        return {"tokens": tokens, "start": "tokens" if tokens else self.start} if self.place == "input" else {}

    def ids(self, vocab_size):
        """The tokens that they begin as."""
        count = min(FREQUENT, vocab_size)
        drawn = np.random.default_rng(0).choice(count, self.length, replace=self.length > count)
        return np.resize(self.tokens, self.length) if self.tokens else drawn

    def new_cache(self, model, batch, length):
        cache = model.new_cache(batch, length + self.soft_tokens)
        return {**cache, "decoder": {**cache["decoder"], FIRST: ()}} if self.soft_tokens else cache

    def interceptor(self, name):
        of_soft_tokens = []  # not empty while the soft tokens themselves get their positions

        def call(next_fun, args, kwargs, context):
            module, method = context.module, context.method_name
            path = module_path(name, module)
            if method == "placed" and self.shift and not of_soft_tokens and self._moves(module, path):
                x, positions, *more = args
                self._check_room(module, x.shape[1])
                return next_fun(x, positions + self.length, *more, **kwargs)
            if isinstance(module, Stack) and method == "__call__":
                return self._stack(next_fun, *args, module=module, path=path, of_soft_tokens=of_soft_tokens, **kwargs)
            if self.place == "layers" and isinstance(module, Block) and method == "__call__" and self._here(path):
                return self._block(next_fun, module, *args)
            if method == "attended" and module.name == "attention" and self.place == "attention" and self._here(path):
                return self._attend(next_fun, module, *args)
            return next_fun(*args, **kwargs)

        return call

    def _here(self, path):
        return re.search(self.where, path) is not None

    def _moves(self, module, path):
        """Whether a text model's tokens come after soft ones."""
        if hasattr(module, "decode"):
            if module.positions == "learned":
                raise UserError(
                    "PromptTuning: an EncoderDecoder with learned positions has one table for both stacks, and soft "
                    "tokens move one of them: choose relative positions"
                )
            return False
        return any(hasattr(module, stack) and self._here(f"{path}/{stack}") for stack in ("encoder", "decoder"))

    def _check_room(self, module, tokens):
        if module.positions == "learned" and self.length + tokens > module.places:
            raise UserError(
                f"PromptTuning.length={self.length} and {tokens} tokens do not fit into the model's {module.places} "
                "learned positions: make it shorter, or the texts"
            )

    def _stack(self, next_fun, x, mask, *, module, path, of_soft_tokens, positions=None, cache=None, **how):
        pair = hasattr(module.parent, "decode")  # an encoder-decoder, whose encoder alone has them by default
        beside = path.rpartition("/")[0]
        if module.cross and self.place == "input" and self._here(f"{beside}/encoder"):
            how["source_mask"] = how["source_mask"].after(self.length, queries=False)
        here = self._here(path) and not (module.cross and not self.where)
        if self.place == "attention" and self._here(path) and module.positions == "rope":
            positions = (mask.positions(x.shape[1]) if positions is None else positions) + self.length
        if self.place != "input" or not here:
            return next_fun(x, mask, positions=positions, cache=cache, **how)
        if cache is not None and FIRST not in cache:  # their keys and values are in it
            positions = None if positions is None else positions + self.length
            return next_fun(x, mask.after(self.length, queries=False), positions=positions, cache=cache, **how)
        soft = self._soft(module, of_soft_tokens).astype(x.dtype)
        if positions is not None:
            own = jnp.broadcast_to(jnp.arange(self.length), (len(positions), self.length))
            positions = jnp.concatenate([own, positions + self.length], 1)
        if cache is not None:
            cache = {kind: x for kind, x in cache.items() if kind != FIRST}
        both = self._before(soft, x)
        x, more = next_fun(both, mask.after(self.length), positions=positions, cache=cache, **how)
        more = {**more, "layers": more["layers"][:, :, self.length :]}
        return x if pair and not module.cross else x[:, self.length :], more

    def _soft(self, module, of_soft_tokens):
        """[1, P, D] as a stack reads them, with their positions in a text."""
        shape, model = (self.length, module.d_model), module.parent
        text = hasattr(model, "placed")
        if self.text:
            raise UserError("PromptTuning.text has not been read: a run's data do, else adapt.worded(tokenizer.encode)")
        if not self.tokens and self.start == "random":
            soft = module.param(SOFT, nn.initializers.normal(self.std), shape, jnp.float32)
        elif not text:
            raise UserError(
                "PromptTuning.start='vocabulary' and tokens are for text: a model of images has no embedding"
            )
        else:
            ids = self.ids(model.vocab_size)
            if max(ids) >= model.vocab_size or min(ids) < 0:
                raise UserError(f"PromptTuning.tokens: the model has ids from 0 to {model.vocab_size - 1}")
            soft = model.embed(jnp.asarray(ids, jnp.int32)).astype(jnp.float32)
            soft = soft + module.param(SOFT, nn.initializers.zeros, shape, jnp.float32)
        if not text:
            return soft[None]
        of_soft_tokens.append(True)
        try:
            return model.placed(soft[None], jnp.arange(self.length)[None])
        finally:
            of_soft_tokens.pop()

    def _before(self, soft, x):
        """[1, P, D] and [B, L, D] -> [B, P + L, D]."""
        soft = jnp.broadcast_to(soft, (len(x), *soft.shape[1:]))
        return constrain(jnp.concatenate([soft, x], 1), BATCH, None, None)

    def _block(self, next_fun, module, x, own, shared):
        if own["cache"] is not None or any(s is not None for s in (shared.bias, shared.angles, shared.source)):
            raise UserError(
                "PromptTuning.place='layers' is for encoders whose layers know no positions, as a ViT's: choose "
                "place='attention'"
            )
        soft = module.param(SOFT, nn.initializers.normal(self.std), (self.length, module.d_model), jnp.float32)
        both = self._before(soft[None].astype(x.dtype), x)
        x, more = next_fun(both, own, shared.replace(mask=shared.mask.after(self.length)))
        x = constrain(x[:, self.length :], BATCH, None, None)
        return x, {**more, "out": x}

    def _attend(self, next_fun, module, q, key, value, mask, bias, scale, dropped):
        """The method `attended` of an Attention: keys and values [B, G, S, K] behind those of the prefix."""

        def behind(name, x):
            shape = (self.length, x.shape[1], x.shape[3])
            prefix = module.param(name, nn.initializers.normal(self.std), shape, jnp.float32)
            prefix = self.in_use(f"/{name}", prefix).astype(x.dtype)
            prefix = jnp.broadcast_to(prefix.swapaxes(0, 1)[None], (len(x), shape[1], self.length, shape[2]))
            return constrain(jnp.concatenate([prefix, x], 2), BATCH, "tensor", None, None)

        mask, bias = mask.after(self.length, queries=False), pad_bias(bias, keys=self.length)
        return next_fun(q, behind(KEY, key), behind(VALUE, value), mask, bias, scale, dropped)
