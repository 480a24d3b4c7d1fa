"""What CLIP and SigLIP share: two towers, their heads and a scale."""

import jax.numpy as jnp

from paradigm.hf import MEANING as ARCHITECTURE
from paradigm.hf import Leaf, Patches, dense, norm, plain, stacked
from paradigm.hf.config import inverse

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu_exact", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu",
               "relu": "relu"}  # fmt: skip
FREE = frozenset({"std", "dropout"})
MEANING = {
    "end_id": lambda m: m.end_id if m.pool == "end" else None,  # others do not read it
    "tower": lambda m: m.tower is not None,  # the encoder, which is compared itself
}
IGNORED = r".*\.position_ids"  # old files hold positions as numbers
# The projections' width stands above; old files have a dropout that nothing reads.
SIDE_IRRELEVANT = ("projection_dim", "dropout")


def stack_fields(side, defaults):
    """Fields of a tower from its Config. defaults: the library's (CLIPTextConfig and the like)."""
    return {
        "attention_dropout": side.get("attention_dropout", 0.0),
        "d_model": side.get("hidden_size", defaults["hidden_size"]),
        "d_ff": side.get("intermediate_size", defaults["intermediate_size"]),
        "layers": side.get("num_hidden_layers", 12),
        "heads": side.get("num_attention_heads", defaults["heads"]),
        "activation": side.choose("hidden_act", defaults["hidden_act"], ACTIVATIONS),
        "eps": side.get("layer_norm_eps", defaults["eps"]),
    }


def image_fields(side, defaults):
    return stack_fields(side, defaults) | {
        "image_size": side.get("image_size", 224),
        "patch": side.get("patch_size", defaults["patch"]),
        "channels": side.get("num_channels", 3),
        "positions": "learned",
    }


def text_fields(side, defaults):
    length = side.get("max_position_embeddings", defaults["length"])
    vocabulary = side.get("vocab_size", defaults["vocab_size"])
    return stack_fields(side, defaults) | {"vocab_size": vocabulary, "max_length": length}


def sides(modules, kind):
    """{"text_config", "vision_config"} of our towers."""
    image, text = modules["encoder"], modules["text"]

    def stack(tower, name):
        return {
            "model_type": f"{kind}_{name}_model",
            "hidden_size": tower.d_model,
            "intermediate_size": tower.d_ff,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": inverse(ACTIVATIONS).get(tower.activation, "gelu"),
            "layer_norm_eps": tower.eps,
            "attention_dropout": ARCHITECTURE["attention_dropout"](tower),
        }

    return {
        "text_config": stack(text, "text") | {"vocab_size": text.vocab_size, "max_position_embeddings": text.length},
        "vision_config": stack(image, "vision")
        | {"num_channels": image.channels, "image_size": image.image_size, "patch_size": image.patch},
    }


def _blocks(count, theirs, ours):
    rows = [
        *norm("layer_norm1", "attention_norm"),
        *(r for name in ("query", "key", "value") for r in dense(f"self_attn.{name[0]}_proj", f"attention/{name}")),
        *dense("self_attn.out_proj", "attention/out", 2),
        *norm("layer_norm2", "mlp_norm"),
        *dense("mlp.fc1", "mlp/up"),
        *dense("mlp.fc2", "mlp/down"),
    ]
    return stacked(count, theirs + ".encoder.layers.{}", ours, rows)


def towers(modules):
    """Leaves that both families have."""
    image, text = modules["encoder"], modules["text"]
    stack = f"text/{'decoder' if text.causal else 'encoder'}"
    return [
        Leaf("text_model.embeddings.token_embedding.weight", ("text/embed/embedding",)),
        Leaf("text_model.embeddings.position_embedding.weight", ("text/positions/embedding",)),
        *_blocks(text.layers, "text_model", stack),
        *plain(norm("text_model.final_layer_norm", f"{stack}/norm")),
        Leaf("vision_model.embeddings.patch_embedding.weight", ("encoder/embed/kernel",), Patches(image.patch)),
        *_blocks(image.layers, "vision_model", "encoder/blocks"),
        *plain(norm("vision_model.post_layernorm", "encoder/blocks/norm")),
    ]


def inputs(modules):
    image, text = modules["encoder"], modules["text"]
    pooled = (1, image.features) if modules["image_head"].tower is None else (1, 1, image.features)
    return {
        "encoder": (jnp.zeros((1, image.image_size, image.image_size, image.channels)),),
        "image_head": (jnp.zeros(pooled),),
        "text": (jnp.zeros((1, text.length), jnp.int32),),
        "text_head": (jnp.zeros((1, text.features)),),
    }
