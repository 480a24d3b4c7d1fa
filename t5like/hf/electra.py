"""ELECTRA's two towers, a directory each: the discriminator with its head, and the generator with its output.

Both are BERT's encoder; a linear map may stand between the tables and the first block.
"""

import jax.numpy as jnp

from paradigm.hf import Family, Leaf, Vector, dense, norm, plain
from t5like.heads import TokenHead, token_head
from t5like.hf import bert
from t5like.hf.common import text_family
from t5like.models import Encoder


def _model(config, tensors, **fields):
    config.only(tie_word_embeddings=True, position_embedding_type="absolute")
    ours = bert.encoder(config, offset=0, embed_width=config.get("embedding_size", 128), **fields)
    return ours if ours.embed_width != ours.d_model else ours.clone(embed_width=None)


def _config(model, architecture):
    return bert.config("electra", architecture)(model) | {
        "embedding_size": model.embed_features,
        "tie_word_embeddings": True,
    }


def _encoder_leaves(model):
    project = dense("electra.embeddings_project", "encoder/project") if model.embed_features != model.d_model else []
    return [
        *bert.encoder_leaves(model, "electra", ("generator_lm_head.weight",) if model.head else ()),
        *plain(project),
    ]


def _generator_leaves(model):
    head = dense("generator_predictions.dense", "head/dense") + norm("generator_predictions.LayerNorm", "head/norm")
    return [*_encoder_leaves(model), *plain(head), Leaf("generator_lm_head.bias", ("head/bias",), Vector)]


def _discriminator_leaves(modules):
    """With whole paths, of two modules."""
    head = dense("discriminator_predictions.dense", "dense") + dense(
        "discriminator_predictions.dense_prediction", "out"
    )
    under = lambda module, leaf: Leaf(leaf.name, tuple(f"{module}/{p}" for p in leaf.paths), leaf.how, leaf.layer)
    encoder = [under("model", leaf) for leaf in _encoder_leaves(modules["model"])]
    return encoder + [under("detector", leaf) for leaf in plain(head)]


def _discriminator(config, tensors):
    model = _model(config, tensors, head=False)
    return {"model": model, "detector": token_head(model)}


# Of sequence classification, which has heads of its own.
IRRELEVANT = ("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj")
DISCRIMINATOR = Family(
    "ELECTRA discriminator",
    "electra",
    kinds={"model": Encoder, "detector": TokenHead},
    modules=_discriminator,
    config=lambda modules: _config(modules["model"], "ElectraForPreTraining"),
    leaves=_discriminator_leaves,
    inputs=lambda modules: {
        "model": (jnp.zeros((1, 1), jnp.int32),),
        "detector": (jnp.zeros((1, 1, modules["model"].d_model)),),
    },
    free=frozenset({"max_length"}),
    meaning={"head_activation": lambda m: None},
    ignored=r"electra\.embeddings\.position_ids",
    irrelevant=IRRELEVANT,
    heads=True,
    architectures=("ElectraForPreTraining",),
)
GENERATOR = text_family(
    "ELECTRA generator",
    "electra",
    Encoder,
    "learned",
    lambda config, tensors: _model(config, tensors, head=True, head_activation="gelu_exact"),
    lambda model: _config(model, "ElectraForMaskedLM"),
    _generator_leaves,
    meaning={"head_activation": lambda m: m.head_activation or m.activation},
    ignored=r"electra\.embeddings\.position_ids",
    irrelevant=IRRELEVANT,
    architectures=("ElectraForMaskedLM",),
)
