"""ViT-MAE: a ViT and MAE's Decoder."""

import jax.numpy as jnp
import numpy as np

from paradigm.hf import Family, Leaf, dense, norm, plain
from paradigm.hf.files import ROUNDING
from vision.hf.vit import (
    FREE,
    POOL,
    POSITIONS,
    blocks,
    fixed_positions,
    image_inputs,
    positions,
    rename,
    vit_config,
    vit_leaves,
    vit_model,
)
from vision.objectives.mae import Decoder
from vision.vit import ViT

_DECODER_POSITIONS = "decoder.decoder_pos_embed"


def _modules(config, tensors):
    def kind(name, vit, width):
        """sincos where the file's table is the formula's, else learned: it keeps the file's numbers."""
        if name not in tensors or width % 4:
            return "learned" if width % 4 else "sincos"
        table, formula = tensors.read(name), fixed_positions(vit, width)
        same = table.shape == formula.shape and np.allclose(table, formula, rtol=0, atol=ROUNDING)
        return "sincos" if same else "learned"

    vit, width = vit_model(config, "sincos"), config.get("decoder_hidden_size")
    vit = vit.clone(positions=kind(POSITIONS, vit, vit.d_model))
    decoder = Decoder(
        vit,
        width,
        layers=config.get("decoder_num_hidden_layers"),
        heads=config.get("decoder_num_attention_heads"),
        d_ff=config.get("decoder_intermediate_size"),
        positions=kind(_DECODER_POSITIONS, vit, width),
    )
    return {"encoder": vit, "decoder": decoder}


def _config(modules):
    decoder = modules["decoder"]
    return vit_config(modules) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.layers,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": decoder.hidden,
        "mask_ratio": 0.75,
        "norm_pix_loss": True,
    }


def _leaves(modules):
    vit, decoder = modules["encoder"], modules["decoder"]
    table = "decoder/positions/embedding"
    return [
        *vit_leaves(modules),
        Leaf("decoder.mask_token", ("decoder/mask_token",)),
        positions(_DECODER_POSITIONS, decoder.positions, table, vit, decoder.width),
        *plain(dense("decoder.decoder_embed", "decoder/embed")),
        # Version 5.23 of the library writes "decoder_encoder.layer", its renaming of encoders gone too far.
        *blocks(vit, decoder.layers, "decoder.decoder_layers", "decoder/blocks", "decoder.decoder_encoder.layer"),
        *plain(norm("decoder.decoder_norm", "decoder/blocks/norm")),
        *plain(dense("decoder.decoder_pred", "decoder/predict")),
    ]


def _inputs(modules):
    vit = modules["encoder"]
    patches = jnp.arange(vit.grid[0] * vit.grid[1])[None]
    return {"encoder": image_inputs(vit), "decoder": (jnp.zeros((1, 2, vit.d_model)), patches)}


MAE_FAMILY = Family(
    "ViT-MAE",
    "vit_mae",
    kinds={"encoder": ViT, "decoder": Decoder},
    modules=_modules,
    config=_config,
    leaves=_leaves,
    inputs=_inputs,
    free=FREE | {"encoder"},
    meaning=POOL | {"d_ff": lambda m: getattr(m, "hidden", m.d_ff)},
    rename=rename,
    irrelevant=("mask_ratio", "norm_pix_loss", "tie_word_embeddings"),
)
