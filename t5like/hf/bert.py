"""BERT and RoBERTa: an Encoder with learned positions, norms after each branch, and a head for hidden tokens where the
file has one (the bare model, sentence encoders and classifiers have none).

A file's pooler, its next-sentence head and heads of tasks, which no model of ours has, are left unread.
"""

from paradigm.hf import MEANING, Leaf, dense, norm, plain, stacked
from paradigm.hf.config import inverse
from paradigm.hf.leaves import Vector
from t5like.hf.common import ACTIVATIONS, prefixed, text_family
from t5like.models import Encoder


def _model(offset, bias, head_activation=None):
    """offset: Config -> the first row of the table of positions that a token is at. bias: a tensor of the head."""

    def model(config, tensors):
        config.only(position_embedding_type="absolute", tie_word_embeddings=True)
        head = {"head": True, "head_activation": head_activation} if bias in tensors else {}
        return encoder(config, offset(config), **head)

    return model


def encoder(config, offset, **fields):
    """The Encoder that BERT, RoBERTa and ELECTRA are. offset: the first token's row in the table of positions."""
    return Encoder(
        vocab_size=config.get("vocab_size"),
        d_model=config.get("hidden_size"),
        heads=config.get("num_attention_heads"),
        d_ff=config.get("intermediate_size"),
        layers=config.get("num_hidden_layers"),
        activation=config.choose("hidden_act", "gelu", ACTIVATIONS),
        norm="layer",
        norm_place="post",
        input_norm=True,
        eps=config.get("layer_norm_eps", 1e-12),
        bias=True,
        positions="learned",
        max_length=config.get("max_position_embeddings"),
        position_offset=offset,
        token_types=config.get("type_vocab_size", 2),
        dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
        dropout_style="gpt2",
        tied=True,
        **fields,
    )


def config(kind, architecture, bare=None):
    """ours -> config.json. bare: the architecture without a head, where that is another."""

    def of(model):
        return {
            "architectures": [architecture if model.head or bare is None else bare],
            "model_type": kind,
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "num_attention_heads": model.heads,
            "intermediate_size": model.d_ff,
            "num_hidden_layers": model.layers,
            "hidden_act": inverse(ACTIVATIONS).get(model.activation, "gelu"),
            "layer_norm_eps": model.eps,
            "max_position_embeddings": model.max_length or 512,  # None is of other positions, and they are what differs
            "type_vocab_size": model.token_types,
            "hidden_dropout_prob": model.dropout,
            "attention_probs_dropout_prob": MEANING["attention_dropout"](model),
            "tie_word_embeddings": True,
            "pad_token_id": max(model.position_offset - 1, 0),
        }

    return of


def encoder_leaves(model, root, copies):
    """Of all but the head. copies: other names of the table of tokens in some files."""
    rows = [
        *dense("attention.self.query", "attention/query"),
        *dense("attention.self.key", "attention/key"),
        *dense("attention.self.value", "attention/value"),
        *dense("attention.output.dense", "attention/out", 2),
        *norm("attention.output.LayerNorm", "attention_norm"),
        *dense("intermediate.dense", "mlp/up"),
        *dense("output.dense", "mlp/down"),
        *norm("output.LayerNorm", "mlp_norm"),
    ]
    return [
        Leaf(f"{root}.embeddings.word_embeddings.weight", ("embed/embedding",), aliases=copies),
        Leaf(f"{root}.embeddings.position_embeddings.weight", ("positions/embedding",)),
        Leaf(f"{root}.embeddings.token_type_embeddings.weight", ("token_types/embedding",)),
        *plain(norm(f"{root}.embeddings.LayerNorm", "encoder/pre_norm")),
        *stacked(model.layers, root + ".encoder.layer.{}", "encoder", rows),
    ]


def _leaves(root, transform, transform_norm, bias, output):
    """Of one of the two, by the names of its head's tensors."""

    def leaves(model):
        if not model.head:
            return encoder_leaves(model, root, ())
        return [
            *encoder_leaves(model, root, (f"{output}.weight",)),
            *plain(dense(transform, "head/dense") + norm(transform_norm, "head/norm")),
            Leaf(bias, ("head/bias",), Vector, aliases=(f"{output}.bias",)),
        ]

    return leaves


def _renamed(name):
    """Files that TensorFlow's were made into have its words for a norm's two vectors; the bare model has no prefix."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return prefixed("bert.", "cls.")(name)


HOW = {
    "meaning": {"head_activation": lambda model: model.head_activation or model.activation},
}
BERT = text_family(
    "BERT",
    "bert",
    Encoder,
    "learned",
    _model(lambda config: 0, "cls.predictions.bias"),
    config("bert", "BertForMaskedLM", "BertModel"),
    _leaves(
        "bert",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder",
    ),
    **HOW,
    rename=_renamed,
    ignored=r"bert\.pooler\..*|cls\.seq_relationship\..*|bert\.embeddings\.position_ids",
)
ROBERTA = text_family(
    "RoBERTa",
    "roberta",
    Encoder,
    "learned",
    _model(lambda config: config.get("pad_token_id", 1) + 1, "lm_head.bias", "gelu_exact"),  # fairseq counts from there
    config("roberta", "RobertaForMaskedLM", "RobertaModel"),
    _leaves("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
    **HOW,
    rename=prefixed("roberta."),
    ignored=r"roberta\.pooler\..*|roberta\.embeddings\.position_ids",
)
