"""Asking two towers in a notebook: vectors of pictures and texts in one space, and classes by their names."""

import numpy as np

from multimodal.zero_shot import class_vectors, embed_texts, towers
from paradigm.errors import UserError
from vision.ask import asked, classified, one


def embed(objective, variables, tokenizer, inputs):
    """Unit vectors float32 [n, E] of pictures uint8 [h, w, C] or of texts; of one, [E].

    Args:
        objective: PairEmbedding. variables: of objective.apply. tokenizer: the data's, for an objective without one of
        its own. inputs: a list of texts or of pictures, or one. A text longer than the tower's row is cut.

    Raises:
        UserError: pictures of other channels than the encoder reads, or of another kind.
    """
    if isinstance(inputs, str) or one(inputs):
        return embed(objective, variables, tokenizer, [inputs])[0]
    if not len(inputs):
        return np.zeros((0, objective.width), np.float32)
    if isinstance(inputs[0], str):
        return embed_texts(objective, variables, list(inputs), tokenizer)
    return np.stack(asked(towers(objective)[0], objective, variables, inputs))


def classify(objective, variables, tokenizer, images, classes, templates="photo"):
    """Zero-shot classification: a Classified for each picture, of any classes, by their names.

    Args:
        classes: names. templates: sets of multimodal/templates.py or sentences with {} for the name. The others as of
        `embed`. Probabilities are the softmax over the classes of the objective's scale times the cosines.

    Raises:
        UserError: fewer than two classes, an unknown set of templates, and what `embed` raises.
    """
    if one(images):
        return classify(objective, variables, tokenizer, [images], classes, templates)[0]
    if isinstance(classes, str) or len(classes) < 2:
        raise UserError(f"classify: classes={classes!r}: give the names of two or more to choose among")
    if not len(images):
        return []
    names = class_vectors(objective, variables, list(classes), templates, tokenizer)
    cosines = embed(objective, variables, tokenizer, images) @ names.T
    logits = np.float64(objective.scale(variables["params"])) * cosines
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return [classified(row / row.sum(), tuple(classes)) for row in chances]
