"""The three networks: what each embeds, which stacks it has, how its output is made (parameter paths: the package)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm import transformer
from paradigm.architecture import Architecture
from paradigm.attention import AttentionMask
from paradigm.errors import UserError, choose
from paradigm.layers import ACTIVATIONS, Dense, Embed
from paradigm.transformer import Stack

# First match wins; axes of the trailing dims. Vectors that no rule names are replicated.
PARTITION_RULES = (
    (r"(^|/)embed/embedding$", ("tensor", "fsdp")),
    (r"(^|/)(positions|decoder_positions|token_types)/embedding$", (None, "fsdp")),
    (r"(^|/)logits/kernel$", ("fsdp", "tensor")),
    (r"(^|/)head/dense/kernel$", ("fsdp", "tensor")),
    (r"(^|/)head/bias$", ("tensor",)),
    *transformer.PARTITION_RULES,
)


class TextModel(Architecture, kw_only=True):
    """What the three share: the embedding, the output kernel and the fields of stacks.

    vocab_size: V; None until a vocabulary says it (objective.bind). layers: of each stack. window: of its attention to
    itself, or None (see AttentionMask). tied: the output kernel is the embedding. tied_scale: logits times
    d_model ** -0.5 when tied (T5 v1.0). embed_std: of the embedding's initialiser. position_std: of learned positions',
    None is embed_std; max_length: rows of their table; position_offset: the first token's row (2 in RoBERTa). remat,
    scan: see Stack.
    """

    vocab_size: int | None
    layers: int
    window: int | None = None
    tied: bool = False
    tied_scale: bool = False
    embed_std: float = 1.0
    position_std: float | None = None
    max_length: int | None = None
    position_offset: int = 0
    scale_embeddings: bool = False
    remat: str = "none"
    scan: bool = True

    table_rows = "tensor"  # see Embed

    def setup(self):
        if self.vocab_size is None:
            raise UserError(
                "the model has no vocab_size: objective.bind(vocabulary) gives it one, in a run that of its data, where"
                " they are text; or set it"
            )
        self.embed = Embed(self.vocab_size, self.embed_features, self.embed_std, self.dtype, self.table_rows)
        if self.positions == "learned":
            std = self.embed_std if self.position_std is None else self.position_std
            self.learned = Embed(self.position_rows, self.embed_features, std, self.dtype, name="positions")
        if not self.tied:
            self.logits = Dense((self.vocab_size,), std=self.init_std, dtype=self.dtype)

    @property
    def embed_features(self):
        """Width of the tables."""
        return self.d_model

    @property
    def position_rows(self):
        """Rows of the table of learned positions."""
        return self.max_length

    @property
    def places(self):
        """How many tokens learned positions are there for."""
        return self.max_length - self.position_offset

    @nn.nowrap
    def stack(self, **changes):
        return Stack(**self.shared(layers=self.layers, remat=self.remat, scan=self.scan) | changes)

    def embedded(self, tokens, positions, *more, **how):
        """int32 [B, L] -> [B, L, D]."""
        x = self.embed(tokens)
        if self.scale_embeddings:
            x = x * jnp.asarray(self.d_model**0.5, x.dtype)
        return self.placed(x, positions, *more, **how)

    def placed(self, x, positions, table=None):
        """Embeddings [B, L, D] at these positions int32 [B or 1, L] -> [B, L, D], what the stack reads.

        table: of learned positions; None is `positions`.
        """
        if self.positions == "learned":
            if x.shape[1] > self.places:
                have = f"max_length={self.max_length} learned positions"
                have += f" from row {self.position_offset} on" if self.position_offset else ""
                raise UserError(f"{x.shape[1]} tokens, but {have}: raise max_length")
            x = x + (table or self.learned)(positions + self.position_offset)
        return x

    @nn.nowrap
    def output_kernel(self, params):
        """float32 [D, V] with logits == hidden @ output_kernel(params); reads nothing but the tree."""
        if not self.tied:
            return params["logits"]["kernel"]
        kernel = params["embed"]["embedding"].T
        return kernel * self.d_model**-0.5 if self.tied_scale else kernel

    def score(self, hidden):
        """[B, L, D] -> logits float32 [B, L, V]."""
        if not self.tied:
            return self.logits(hidden).astype(jnp.float32)
        kernel = self.output_kernel(self.variables["params"]).astype(self.dtype)
        return jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)


class MaskedHead(Architecture, kw_only=True):
    """What BERT puts before its output: [..., D] -> [..., D + 1], a dense layer and a norm, and a 1 for the bias."""

    vocab_size: int

    @nn.compact
    def __call__(self, x):
        activation, inputs = choose("activation", self.activation, ACTIVATIONS)
        if inputs > 1:
            raise UserError(f"the head has one product, and {self.activation} takes {inputs}: set head_activation")
        x = Dense((self.d_model,), 1, self.bias, self.init_std, self.dtype, name="dense")(x)
        x = self.make_norm("norm")(activation(x))
        self.param("bias", nn.initializers.zeros, (self.vocab_size,), jnp.float32)  # a row of the output kernel
        return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)


class LogitsBias(nn.Module):
    """A bias [V] of the logits: [..., D] -> [..., D + 1], with a 1 for the row that it is of the output kernel."""

    vocab_size: int

    @nn.compact
    def __call__(self, x):
        self.param("bias", nn.initializers.zeros, (self.vocab_size,), jnp.float32)
        return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)


class Encoder(TextModel, kw_only=True):
    """Tokens that all see each other.

    head: BERT's dense layer and norm before the output, and a bias behind it (Devlin et al. 2019; google-research/bert,
    run_pretraining.py, get_masked_lm_output); the output is then tied. head_activation: None is as `activation`.
    token_types: rows of a table of which one is added to every token, BERT's for sentences A and B; 0: none.
    embed_width: E, of the tables, where it is not d_model; a linear map leads from one to the other (Lan et al. 2020,
    "ALBERT", section 3.1; ELECTRA). The output, which is tied, then needs the head. scaled_init: see Stack.
    """

    head: bool = False
    head_activation: str | None = None
    token_types: int = 0
    embed_width: int | None = None
    scaled_init: bool = True

    def setup(self):
        super().setup()
        self.encoder = self.stack(scaled_init=self.scaled_init)
        if self.token_types:
            self.types = Embed(self.token_types, self.embed_features, self.embed_std, self.dtype, name="token_types")
        if self.head:
            if not self.tied:
                raise UserError("an Encoder with head=True scores by its embedding: set tied=True")
            of_head = {"vocab_size": self.vocab_size, "activation": self.head_activation or self.activation}
            self.masked_head = MaskedHead(**self.shared(**of_head, d_model=self.embed_features), name="head")

    @property
    def embed_features(self):
        return self.d_model if self.embed_width is None else self.embed_width

    def placed(self, x, positions, types=None):
        x = super().placed(x, positions)
        return x + self.types(jnp.zeros((1, 1), jnp.int32) if types is None else types) if self.token_types else x

    def hidden(self, tokens, keys=None, segments=None, places=None, types=None):
        """int32 [B, L] -> (hidden [B, L, D], or [B, P, D] at `places`; intermediates).

        segments: int32 [B, L], 0 is padding; None: nothing is. places: int32 [B, P], those to be scored. With `head`,
        the last axis is D + 1. types: int32 [B, L] of `token_types`; None is 0 everywhere.
        """
        mask = AttentionMask(queries=segments, keys=segments, window=self.window)
        embedded = self.embedded(tokens, jnp.arange(tokens.shape[1])[None], types)
        x, intermediates = self.encoder(embedded, mask, keys=keys)
        hidden = x if places is None else jnp.take_along_axis(x, places[..., None], axis=1)
        return self.masked_head(hidden) if self.head else hidden, {"embedded": embedded, **intermediates, "encoded": x}

    def __call__(self, tokens, keys=None, segments=None):
        """int32 [B, L] -> (logits [B, L, V], intermediates); hidden [B, L, D] where there is no output for it."""
        hidden, intermediates = self.hidden(tokens, keys, segments)
        scores = self.head or self.embed_features == self.d_model
        return self.score(hidden) if scores else hidden, {**intermediates, "hidden": hidden}

    @nn.nowrap
    def output_kernel(self, params):
        """float32 [D, V], or [D + 1, V] with `head`: logits == hidden @ output_kernel(params)."""
        kernel = super().output_kernel(params)
        return jnp.concatenate([kernel, params["head"]["bias"][None]]) if self.head else kernel

    @nn.nowrap
    def flops(self, batch, length, scored=None):
        """Forward FLOPs: products of the stack, and of head and logits at `scored` positions of a row (None: all)."""
        scored, width = length if scored is None else scored, self.embed_features
        out = 2 * batch * scored * width * (self.vocab_size + self.head * self.d_model)
        project = 2 * batch * length * width * self.d_model if width != self.d_model else 0
        return self.stack(parent=None).flops(batch, length) + project + out


class Decoder(TextModel, kw_only=True):
    """Next-token model; given `prefix` lengths, the first tokens of a row see each other: a prefix LM, same weights."""

    def setup(self):
        super().setup()
        self.decoder = self.stack()

    def hidden(self, tokens_in, keys=None, segments=None, positions=None, prefix=None, cache=None, alone=None):
        """int32 [B, L] -> (hidden [B, L, D], intermediates).

        Args:
            tokens_in: token t-1 at position t, the vocabulary's start id at the start of a document.
            keys: typed PRNG keys [B] for dropout, or None.
            segments: int32 [B, L]; a token sees its own segment only.
            positions: int32 [B, L], restarting with each segment; None counts from the start of the row.
            prefix: int32 [B], how many first positions are visible to all.
            cache: from `new_cache`; intermediates["cache"] is the next one.
            alone: bool [B or 1, L], tokens that no other one sees (see AttentionMask).
        """
        offset = None if cache is None else cache["index"]
        if positions is None:
            positions = jnp.arange(tokens_in.shape[1]) + jnp.reshape(0 if offset is None else offset, (-1, 1))
        mask = AttentionMask(True, prefix, segments, segments, offset, self.window, alone=alone)
        embedded = self.embedded(tokens_in, positions)
        hidden, intermediates = self.decoder(
            embedded, mask, positions=positions, keys=keys, cache=None if cache is None else cache["decoder"]
        )
        return hidden, _advanced({"embedded": embedded, **intermediates}, cache, tokens_in.shape[1])

    def __call__(self, tokens_in, keys=None, segments=None, positions=None, prefix=None, cache=None):
        """int32 [B, L] -> (logits float32 [B, L, V], intermediates); arguments as `hidden`."""
        hidden, intermediates = self.hidden(tokens_in, keys, segments, positions, prefix, cache)
        return self.score(hidden), {**intermediates, "hidden": hidden}

    @nn.nowrap
    def new_cache(self, batch, length):
        """An empty cache for `length` positions: {"index": int32 [B], "decoder": {"self": ...}}. Needs no variables.

        index: how many positions of each row are filled. Slots at or after it are never seen, so a ragged batch of
        prompts is read padded in one call, and `index` then set to their lengths.
        """
        return {"index": jnp.zeros((batch,), jnp.int32), "decoder": self.stack(parent=None).new_cache(batch, length)}

    @nn.nowrap
    def flops(self, batch, length):
        """Forward FLOPs: products of the stack (all pairs of positions) and of the logits at every position."""
        return self.stack(parent=None).flops(batch, length) + 2 * batch * length * self.d_model * self.vocab_size


class EncoderDecoder(TextModel, kw_only=True):
    """T5: an encoder, and a causal decoder that attends to it, with one embedding.

    layers: of the encoder, and of the decoder unless decoder_layers says otherwise. logits_bias: a vector that is added
    to tied logits (BART's final_logits_bias). scaled_init: see Stack. Learned positions of the decoder have a table of
    their own.
    """

    decoder_layers: int | None = None
    logits_bias: bool = False
    scaled_init: bool = True

    def setup(self):
        super().setup()
        self.encoder = self.stack(scaled_init=self.scaled_init)
        self.decoder = self.stack(**self._decoder)
        self.decoder_table = None
        if self.positions == "learned":
            std = self.embed_std if self.position_std is None else self.position_std
            self.decoder_table = Embed(self.max_length, self.d_model, std, self.dtype, name="decoder_positions")
        if self.logits_bias:
            if not self.tied:
                raise UserError("an EncoderDecoder with logits_bias=True scores by its embedding: set tied=True")
            self.bias_of_logits = LogitsBias(self.vocab_size, name="head")

    @property
    def _decoder(self):
        layers = self.layers if self.decoder_layers is None else self.decoder_layers
        return {"cross": True, "layers": layers, "scaled_init": self.scaled_init}

    def encode(self, inputs, keys=None, input_segments=None):
        """int32 [B, S] -> (encoded [B, S, D], intermediates).

        input_segments: int32 [B, S], 0 is padding; None: nothing is.
        """
        mask = AttentionMask(queries=input_segments, keys=input_segments, window=self.window)
        embedded = self.embedded(inputs, jnp.arange(inputs.shape[1])[None])
        encoded, intermediates = self.encoder(embedded, mask, keys=_fold(keys, 0))
        return encoded, {"embedded": embedded, **intermediates}

    def decode(self, encoded, decoder_inputs, keys=None, input_segments=None, target_segments=None, cache=None):
        """int32 [B, L] -> (hidden [B, L, D], or D + 1 with `logits_bias`; intermediates).

        Args:
            encoded: [B, S, D]; None when the cache already holds the source's keys and values.
            decoder_inputs: targets shifted right, the vocabulary's start id first.
            input_segments: int32 [B, S], of what was encoded; 0 is not seen. target_segments: int32 [B, L], or None.
            cache: from `new_cache`; intermediates["cache"] is the next one. Its first use must bring `encoded`.
        """
        offset = None if cache is None else cache["index"]
        positions = jnp.arange(decoder_inputs.shape[1]) + jnp.reshape(0 if offset is None else offset, (-1, 1))
        mask = AttentionMask(True, None, target_segments, target_segments, offset, self.window)
        to_source = AttentionMask(queries=target_segments, keys=input_segments)
        embedded = self.embedded(decoder_inputs, positions, self.decoder_table)
        hidden, intermediates = self.decoder(
            embedded,
            mask,
            positions=positions,
            source=encoded,
            source_mask=to_source,
            keys=_fold(keys, 1),
            cache=None if cache is None else cache["decoder"],
        )
        hidden = self.bias_of_logits(hidden) if self.logits_bias else hidden
        return hidden, _advanced({"embedded": embedded, **intermediates}, cache, decoder_inputs.shape[1])

    def hidden(self, inputs, decoder_inputs, keys=None, input_segments=None, target_segments=None):
        """int32 [B, S] and [B, L] -> (decoder's hidden [B, L, D], intermediates)."""
        encoded, of_encoder = self.encode(inputs, keys, input_segments)
        hidden, intermediates = self.decode(encoded, decoder_inputs, keys, input_segments, target_segments)
        return hidden, {**intermediates, **{f"encoder/{k}": v for k, v in of_encoder.items()}, "encoded": encoded}

    def __call__(self, inputs, decoder_inputs, keys=None, input_segments=None, target_segments=None):
        """int32 [B, S] and [B, L] -> (logits float32 [B, L, V], intermediates); give both segments or neither."""
        hidden, intermediates = self.hidden(inputs, decoder_inputs, keys, input_segments, target_segments)
        return self.score(hidden), {**intermediates, "hidden": hidden}

    @nn.nowrap
    def output_kernel(self, params):
        """float32 [D, V], or [D + 1, V] with `logits_bias`: logits == hidden @ output_kernel(params)."""
        kernel = super().output_kernel(params)
        return jnp.concatenate([kernel, params["head"]["bias"][None]]) if self.logits_bias else kernel

    @nn.nowrap
    def new_cache(self, batch, length):
        """An empty cache for `length` positions of the decoder. Needs no variables."""
        return {
            "index": jnp.zeros((batch,), jnp.int32),
            "decoder": self.stack(**self._decoder, parent=None).new_cache(batch, length),
        }

    @nn.nowrap
    def flops(self, batch, source, length):
        """Forward FLOPs for inputs [B, S] and targets [B, L], logits at every target position."""
        decoder = self.stack(**self._decoder, parent=None).flops(batch, length, source)
        return (
            self.stack(parent=None).flops(batch, source) + decoder + 2 * batch * length * self.d_model * self.vocab_size
        )


def _fold(keys, side):
    """Keys for the encoder (0) and for the decoder (1), so that equal sites draw different masks."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, side)


def _advanced(intermediates, cache, length):
    if cache is None:
        return intermediates
    return {**intermediates, "cache": {"index": cache["index"] + length, "decoder": intermediates["cache"]}}
