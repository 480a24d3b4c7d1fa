"""Text models from one Stack: Encoder, Decoder, EncoderDecoder, and their sizes by name: `t5`, `gpt`, `bert`.

Parameter paths (n layers stacked in front; H heads, G = kv_heads, K head dim, D model, F hidden, V vocabulary):

    embed/embedding                         [V, D]      shared by encoder and decoder
    positions/embedding                     [T, D]      learned positions only
    decoder_positions/embedding             [T, D]      learned positions of an EncoderDecoder's decoder
    token_types/embedding                   [S, D]      token_types only
    encoder/project/kernel                  [E, D]      embed_width only (/bias [D]); E for D above and in head
    encoder|decoder/relative_bias/embedding [32, H]     relative positions only (per layer: below layers/)
    encoder|decoder/layers/...              leaves with a leading n:
        attention_norm|cross_norm|mlp_norm/scale [D]    (/bias [D] with norm="layer")
        attention|cross/query|key|value/kernel   [D, H, K]  (/bias [H, K] with bias=True); of key and value G for H
        attention|cross/query_norm|key_norm/scale [K]       qk_norm only
        attention|cross/out/kernel               [H, K, D]  (/bias [D])
        attention|cross|mlp_layer_scale          [D]        layer_scale only
        mlp/gate/kernel                          [D, F]     gated only: the activated half (T5's wi_0)
        mlp/up/kernel                            [D, F]     (/bias [F]; T5's wi or wi_1)
        mlp/down/kernel                          [F, D]     (/bias [D]; T5's wo)
    encoder|decoder/norm/scale              [D]         (/bias [D]) not with norm_place="post"
    encoder|decoder/pre_norm/scale          [D]         (/bias [D]) input_norm only
    logits/kernel                           [D, V]      untied only
    head/dense/kernel                       [D, D]      head only (/bias [D] with bias=True)
    head/norm/scale                         [D]         head only (/bias [D])
    head/bias                               [V]         head, or an EncoderDecoder's logits_bias

An Encoder has `encoder/`, a Decoder `decoder/`, an EncoderDecoder both. Every call returns (output, intermediates): a
dict of "embedded" [B, L, D] and "layers" [n, B, L, D], and for an EncoderDecoder the encoder's under "encoder/" and
"encoded".
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from paradigm import transformer
from paradigm.attention import AttentionMask
from paradigm.errors import UserError, build, choose
from paradigm.layers import ACTIVATIONS, Dense, Embed
from paradigm.transformer import Architecture, Stack

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

    table = Embed

    def setup(self):
        if self.vocab_size is None:
            raise UserError("the model has no vocab_size: objective.bind(vocabulary) gives it one, or set it")
        self.embed = self.table(self.vocab_size, self.embed_features, self.embed_std, self.dtype)
        if self.positions == "learned":
            std = self.embed_std if self.position_std is None else self.position_std
            self.learned = Embed(self.max_length, self.embed_features, std, self.dtype, name="positions")
        if not self.tied:
            self.logits = Dense((self.vocab_size,), std=self.init_std, dtype=self.dtype)

    @property
    def embed_features(self):
        """Width of the tables."""
        return self.d_model

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

    def hidden(self, tokens_in, keys=None, segments=None, positions=None, prefix=None, cache=None):
        """int32 [B, L] -> (hidden [B, L, D], intermediates).

        Args:
            tokens_in: token t-1 at position t, the vocabulary's start id at the start of a document.
            keys: typed PRNG keys [B] for dropout, or None.
            segments: int32 [B, L]; a token sees its own segment only.
            positions: int32 [B, L], restarting with each segment; None counts from the start of the row.
            prefix: int32 [B], how many first positions are visible to all.
            cache: from `new_cache`; intermediates["cache"] is the next one.
        """
        offset = None if cache is None else cache["index"]
        if positions is None:
            positions = jnp.arange(tokens_in.shape[1]) + jnp.reshape(0 if offset is None else offset, (-1, 1))
        mask = AttentionMask(True, prefix, segments, segments, offset, self.window)
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


# ---- Sizes by name ---------------------------------------------------------------------------------------------------

# d_model, heads, head_dim, d_ff, layers; from the t5x configs examples/t5/t5_1_1 and t5_1_0 (3b and 11b of v1.0 as the
# released checkpoints). `tiny` is this project's, for tests and two cores.
T5_SIZES = {
    "1.1": {
        "tiny": (128, 4, 32, 320, 2),
        "small": (512, 6, 64, 1024, 8),
        "base": (768, 12, 64, 2048, 12),
        "large": (1024, 16, 64, 2816, 24),
        "xl": (2048, 32, 64, 5120, 24),
        "xxl": (4096, 64, 64, 10240, 24),
    },
    "1.0": {
        "tiny": (128, 4, 32, 512, 2),
        "small": (512, 8, 64, 2048, 6),
        "base": (768, 12, 64, 3072, 12),
        "large": (1024, 16, 64, 4096, 24),
        "3b": (1024, 32, 128, 16384, 24),
        "11b": (1024, 128, 128, 65536, 24),
    },
}
T5_SIZES["1.1"] |= {"3b": T5_SIZES["1.1"]["xl"], "11b": T5_SIZES["1.1"]["xxl"]}

# d_model, heads, layers: Radford et al. 2019, table 2, and the released models; `tiny` and `1b` are this project's.
GPT_SIZES = {
    "tiny": (128, 4, 2),
    "124m": (768, 12, 12),
    "355m": (1024, 16, 24),
    "774m": (1280, 20, 36),
    "1.5b": (1600, 25, 48),
    "1b": (2048, 16, 20),
}
GPT_SIZES |= {
    "small": GPT_SIZES["124m"],
    "medium": GPT_SIZES["355m"],
    "large": GPT_SIZES["774m"],
    "xl": GPT_SIZES["1.5b"],
}


def t5(size, vocab_size=None, version="1.1", **overrides):
    """A T5 EncoderDecoder by name (Raffel et al. 2020; v1.1: gated GELU after Shazeer 2020, no dropout, untied).

    Args:
        size: tiny, small, base, large, xl or 3b, xxl or 11b (v1.0: 3b and 11b only).
        vocab_size: rows of its tables; None: as the vocabulary has ids, rounded up (objective.bind).
        version: "1.1", or "1.0" (ReLU, tied with logits scaled by d_model ** -0.5, dropout 0.1).
        overrides: any field of EncoderDecoder.

    Raises:
        UserError: an unknown version, size or field (the nearest is named), or heads that do not divide.
    """
    sizes = choose("T5 version", str(version), T5_SIZES)
    d_model, heads, head_dim, d_ff, layers = choose(f"T5 v{version} size", str(size).lower(), sizes)
    fields = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "heads": heads,
        "head_dim": head_dim,
        "d_ff": d_ff,
        "layers": layers,
    }
    fields |= {"positions": "relative", "scale_attention": False}
    if str(version) == "1.0":
        fields |= {"activation": "relu", "tied": True, "tied_scale": True, "dropout": 0.1}
    return _checked(build(EncoderDecoder, fields, overrides))


def gpt(size, vocab_size=None, style="rope", **overrides):
    """A Decoder by name.

    Args:
        size: tiny, 124m or small, 355m or medium, 774m or large, 1.5b or xl (GPT-2's), 1b.
        vocab_size: as of `t5`.
        style: rope (rotary positions, RMSNorm, gated SiLU of width 8/3 D, untied) or gpt2 (learned positions, tanh
            GELU, LayerNorm, biases, tied; Radford et al. 2019).
        overrides: any field of Decoder.

    Raises:
        UserError: an unknown style, size or field (the nearest is named), or heads that do not divide.
    """
    d_model, heads, layers = choose("GPT size", str(size).lower(), GPT_SIZES)
    fields = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "heads": heads,
        "layers": layers,
        "init_std": 0.02,
        "embed_std": 0.02,
    }
    styles = {
        # 8/3 D keeps a gated MLP at the parameters of a plain one of 4 D (Shazeer 2020, section 3), rounded up to 64.
        "rope": {"positions": "rope", "activation": "gated_silu", "d_ff": -(-8 * d_model // 3 // 64) * 64},
        "gpt2": {
            **{
                "positions": "learned",
                "max_length": 1024,
                "norm": "layer",
                "eps": 1e-5,
                "activation": "gelu",
                "bias": True,
            },
            **{"tied": True, "d_ff": 4 * d_model, "dropout_style": "gpt2"},
        },
    }
    return _checked(build(Decoder, fields | choose("GPT style", style, styles), overrides))


# d_model, heads, layers: Devlin et al. 2019, section 3; the small ones Turc et al. 2019 ("Well-Read Students Learn
# Better"), table 1.
BERT_SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 8, 4),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 16, 24),
}
# Clark et al. 2020, table 6; its tables of the small size are 128 wide. Base and large are BERT's.
ELECTRA_SIZES = {"small": (256, 4, 12)}
# Warner et al. 2024, table 4; the hidden width of each.
MODERNBERT_SIZES = {"base": (768, 12, 22), "large": (1024, 16, 28)}
MODERNBERT_HIDDEN = {768: 1152, 1024: 2624}


def bert(size, vocab_size=None, style="bert", **overrides):
    """An Encoder by name.

    Args:
        size: tiny, mini, small, medium, base, large.
        vocab_size: as of `t5`.
        style: bert (norms after each branch, learned positions, biases, GELU, dropout 0.1: Devlin et al. 2019, with
            two token types; RoBERTa's encoder has none), or modern (norms before, rotary positions, gated GELU of
            width 8/3 D, no biases and no dropout: after MosaicBERT and ModernBERT, without their ALiBi and local
            layers); both have BERT's head. mosaic: modern with ALiBi in place of rotary positions (Portes et al. 2023).
            modernbert: every third layer sees all, the others 64 tokens to each side, with rotary positions of their
            own base (Warner et al. 2024, section 2.1 and table 4). electra: bert without the head, as ELECTRA's
            discriminator, whose small size is its own (Clark et al. 2020, table 6).
        overrides: any field of Encoder.

    Raises:
        UserError: an unknown style, size or field (the nearest is named), or heads that do not divide.
    """
    sizes = BERT_SIZES | {"electra": ELECTRA_SIZES, "modernbert": MODERNBERT_SIZES}.get(style, {})
    d_model, heads, layers = choose("BERT size", str(size).lower(), sizes)
    fields = {"vocab_size": vocab_size, "d_model": d_model, "heads": heads, "layers": layers}
    fields |= {"init_std": 0.02, "embed_std": 0.02, "norm": "layer", "tied": True, "head": True}
    styles = {
        "bert": {
            **{"positions": "learned", "max_length": 512, "activation": "gelu_exact", "d_ff": 4 * d_model},
            **{
                "norm_place": "post",
                "input_norm": True,
                "eps": 1e-12,
                "bias": True,
                "scaled_init": False,
                "token_types": 2,
            },
            **{"dropout": 0.1, "dropout_style": "gpt2"},
        },
        "modern": {
            **{"positions": "rope", "activation": "gated_gelu_exact", "d_ff": -(-8 * d_model // 3 // 64) * 64},
            **{"eps": 1e-5, "bias": False, "head_activation": "gelu_exact"},
        },
    }
    styles["mosaic"] = styles["modern"] | {"positions": "alibi"}
    styles["modernbert"] = styles["modern"] | {
        **{"norm": "layer_unbiased", "input_norm": True, "first_norm": False, "window": 65, "global_every": 3},
        **{"rope_theta": 160000.0, "local_theta": 10000.0, "d_ff": MODERNBERT_HIDDEN.get(d_model, 3 * d_model // 2)},
    }
    styles["electra"] = styles["bert"] | {"head": False, "embed_width": 128 if str(size).lower() == "small" else None}
    return _checked(build(Encoder, fields | choose("BERT style", style, styles), overrides))


def _checked(model):
    if model.vocab_size is not None and model.vocab_size < 1:
        raise UserError(f"vocab_size={model.vocab_size}: a model needs the number of its tokenizer's ids, or None")
    assert model.head_width > 0  # raises now rather than in the first trace
    return model
