"""CoCa as open_clip writes it (its coca_model.py, transformer.py): open_clip_config.json, open_clip_model.safetensors.

Its pooler norms what it reads, the class token too, which comes to the last norm of our encoder; its norm behind the
pooler is ours in it. The text's decoder is CoCaText with open_clip=True, the poolers are one.
"""

import jax.numpy as jnp

from multimodal.captioners import CoCaText, TaskPoolers, task_poolers
from multimodal.hf.clip import PatchPositions
from multimodal.hf.common import FREE
from multimodal.towers import ClipViT, Head
from paradigm.hf import MEANING, Family, Kernel, Leaf, Patches, Table, Vector, dense, norm, plain, stacked

_ACTIVATION = {False: "gelu_exact", True: "quick_gelu"}
# What is set once in a tower, and otherwise says how it is trained or is of other kinds of towers.
_IMAGE = {"no_ln_pre": False, "pos_embed_type": "learnable", "final_ln_after_pool": False, "pool_type": "tok",
          "ls_init_value": None, "block_type": None, "act_kwargs": None, "norm_kwargs": None, "timm_model_name": None,
          "attentional_pool": True, "output_tokens": True}  # fmt: skip
_TEXT = {"hf_model_name": None, "ls_init_value": None, "block_type": None, "act_kwargs": None, "norm_kwargs": None,
         "no_causal_mask": False, "proj_bias": False, "proj_type": "linear", "embed_cls": True, "output_tokens": True,
         "correct_cls_mask": False, "use_pad_mask": False, "pad_id": 0}  # fmt: skip
_CUSTOM = dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False
)
_TRAINING = ("patch_dropout", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
             "timm_drop_path", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "hf_tokenizer_name",
             "tokenizer_mode", "tokenizer_kwargs", "pool_type", "eos_id", "final_ln_after_pool")  # fmt: skip
_UNREAD = ("dim_head", "n_queries", "attn_pooler_heads", "mlp_ratio")  # of the second half


def _modules(config, tensors):
    del tensors
    image, text = config.part("vision_cfg", _TRAINING), config.part("text_cfg", _TRAINING)
    both = config.part("multimodal_cfg", (*_TRAINING, *_UNREAD, *_TEXT))
    if not both.entries:
        config.refuse("multimodal_cfg", "of open_clip's models CoCa alone is read")
    config.only(custom_text=True, nonscalar_logit_scale=False, init_logit_bias=None)
    image.only(**_IMAGE, **_CUSTOM)
    for side in (text, both):
        side.only(**(_TEXT if side is text else {}), **_CUSTOM)
    width, activation = config.get("embed_dim"), _ACTIVATION[config.get("quick_gelu", False)]
    d_model = image.get("width", 768)
    encoder = ClipViT(
        d_model=d_model, heads=d_model // image.get("head_width", 64), layers=image.get("layers", 12),
        d_ff=int(d_model * image.get("mlp_ratio", 4.0)), image_size=image.get("image_size", 224),
        patch=image.get("patch_size", 16), activation=activation,
    )  # fmt: skip
    queries, heads = image.get("attn_pooler_queries", 256), image.get("attn_pooler_heads", 8)
    if queries < 2:
        image.refuse("attn_pooler_queries", "the first is the picture's vector, and a caption reads the others")
    words = text.get("width", 512)
    text.only(mlp_ratio=4.0)  # of the second half it is 4 whatever is said
    for name, default in {"width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408}.items():
        if both.get(name, default) != text.get(name, default):
            both.refuse(name, f"their two halves of text are alike, and text_cfg has {text.get(name, default)}")
    both.only(ls_init_value=None, block_type=None)
    return {
        "encoder": encoder,
        "pools": task_poolers(encoder, queries, one=True, width=width, heads=heads),
        "image_head": Head(width),
        "text": CoCaText(
            vocab_size=text.get("vocab_size", 49408), max_length=text.get("context_length", 77), d_model=words,
            heads=text.get("heads", 8), d_ff=4 * words, layers=text.get("layers", 12),
            multimodal_layers=both.get("layers", 12), activation=activation, eps=1e-5, open_clip=True,
        ),
        "text_head": Head(width),
    }  # fmt: skip


def _config(modules):
    image, text, pools = modules["encoder"], modules["text"], modules["pools"]
    words = {
        "context_length": text.max_length,
        "vocab_size": text.vocab_size,
        "width": text.d_model,
        "heads": text.heads,
    }
    return {
        "model_type": "open_clip",
        "embed_dim": modules["image_head"].width,
        "quick_gelu": image.activation == "quick_gelu",
        "custom_text": True,
        "vision_cfg": {
            "image_size": image.image_size, "layers": image.layers, "width": image.d_model,
            "head_width": image.d_model // image.heads, "mlp_ratio": image.d_ff / image.d_model,
            "patch_size": image.patch, "attentional_pool": True, "attn_pooler_queries": pools.queries,
            "attn_pooler_heads": pools.heads, "output_tokens": True,
        },
        "text_cfg": {**words, "layers": text.layers, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**words, "layers": text.multimodal_layers},
    }  # fmt: skip


def _rows(attention="attention", mlp="mlp", norms=("attention_norm", "mlp_norm")):
    """A ResidualAttentionBlock."""
    packed = lambda kind: " ".join(f"{attention}/{name}/{kind}" for name in ("query", "key", "value"))
    return [
        *norm("ln_1", norms[0]),
        ("attn.in_proj_weight", packed("kernel"), Kernel(1)),
        ("attn.in_proj_bias", packed("bias"), Vector),
        *dense("attn.out_proj", f"{attention}/out", 2),
        *norm("ln_2", norms[1]),
        *dense("mlp.c_fc", f"{mlp}/up"),
        *dense("mlp.c_proj", f"{mlp}/down"),
    ]


def _leaves(modules):
    image, text, pools = modules["encoder"], modules["text"], modules["pools"]
    pool, ours = "visual.attn_pool", "pools/caption/attention"
    names = ("query", "key", "value")
    kernels = tuple(f"{ours}/{name}/kernel" for name in names)
    if pools.d_model == image.d_model:  # torch's MultiheadAttention packs what is of one width
        attention = [Leaf(f"{pool}.attn.in_proj_weight", kernels, Kernel(1))]
    else:
        attention = [Leaf(f"{pool}.attn.{n[0]}_proj_weight", (k,), Kernel(1)) for n, k in zip(names, kernels)]
    across = [*_rows("cross", "cross_mlp", ("cross_norm", "cross_mlp_norm")), *norm("ln_1_kv", "source_norm")]
    layers, last = "text/multimodal", Kernel(1, torch=False)
    return [
        Leaf("logit_scale", ("log_scale",)),
        Leaf("visual.class_embedding", ("encoder/class_token",), Vector),
        Leaf("visual.positional_embedding", ("encoder/positions/embedding", "encoder/embed/bias"), PatchPositions()),
        Leaf("visual.conv1.weight", ("encoder/embed/kernel",), Patches(image.patch)),
        *plain(norm("visual.ln_pre", "encoder/blocks/pre_norm")),
        *stacked(image.layers, "visual.transformer.resblocks.{}", "encoder/blocks", _rows()),
        *plain(norm(f"{pool}.ln_k", "encoder/blocks/norm")),
        Leaf(f"{pool}.query", ("pools/caption/query",), Table(-1)),
        *plain(norm(f"{pool}.ln_q", "pools/caption/query_norm")),
        *attention,
        Leaf(f"{pool}.attn.in_proj_bias", tuple(f"{ours}/{name}/bias" for name in names), Vector),
        *plain(dense(f"{pool}.attn.out_proj", f"{ours}/out", 2)),
        *plain(norm("visual.ln_post", "pools/caption/norm")),
        Leaf("visual.proj", ("image_head/project/kernel",), last),
        Leaf("text.token_embedding.weight", ("text/embed/embedding",)),
        Leaf("text.positional_embedding", ("text/positions/embedding",)),
        Leaf("text.cls_emb", ("text/class_token",), Vector),
        *stacked(text.layers, "text.transformer.resblocks.{}", "text/decoder", _rows()),
        *plain(norm("text.ln_final", "text/decoder/norm")),
        Leaf("text.text_projection", ("text_head/project/kernel",), last),
        *stacked(text.multimodal_layers, "text_decoder.resblocks.{}", layers, _rows()),
        *stacked(text.multimodal_layers, "text_decoder.cross_attn.{}", layers, across),
        *plain(norm("text_decoder.ln_final", f"{layers}/norm")),
        Leaf("text_decoder.text_projection", ("text/logits/kernel",), last),
    ]


def _inputs(modules):
    image, text, pools = modules["encoder"], modules["text"], modules["pools"]
    tokens = jnp.zeros((1, text.max_length), jnp.int32)
    return {
        "encoder": (jnp.zeros((1, image.image_size, image.image_size, image.channels)),),
        "pools": (jnp.zeros((1, 1, image.features)),),
        "image_head": (jnp.zeros((1, pools.d_model)),),
        "text": (tokens, tokens, jnp.zeros((1, 1, pools.d_model))),
        "text_head": (jnp.zeros((1, text.features)),),
    }


COCA = Family(
    "CoCa",
    "open_clip",
    kinds={"encoder": ClipViT, "pools": TaskPoolers, "image_head": Head, "text": CoCaText, "text_head": Head},
    modules=_modules,
    config=_config,
    leaves=_leaves,
    inputs=_inputs,
    free=FREE | {"pools.cascade", "pools.d_ff"},  # of two poolers, and of an MLP that they have not
    meaning=MEANING | {"tower": lambda m: m.tower is not None},
    scalars=("log_scale",),
    ignored=r".*attn_mask",  # old files hold the causal mask
)
