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

from t5like.models.networks import PARTITION_RULES as PARTITION_RULES
from t5like.models.networks import Decoder as Decoder
from t5like.models.networks import Encoder as Encoder
from t5like.models.networks import EncoderDecoder as EncoderDecoder
from t5like.models.networks import TextModel as TextModel
from t5like.models.sizes import GPT_SIZES as GPT_SIZES
from t5like.models.sizes import T5_SIZES as T5_SIZES
from t5like.models.sizes import bert as bert
from t5like.models.sizes import gpt as gpt
from t5like.models.sizes import t5 as t5
