"""Asking two towers in a notebook: vectors of pictures and texts in one space, and classes by their names."""

from collections.abc import Iterable

import numpy as np

from multimodal.zero_shot import class_vectors, embed_texts, towers
from paradigm.errors import UserError
from vision.ask import asked, classified


def embed(objective, variables, tokenizer, inputs):
    """Unit vectors float32 [n, E] of pictures or of texts; of one, [E].

    Args:
        objective: PairEmbedding. variables: of objective.apply. tokenizer: the data's, for an objective without one of
        its own. inputs: texts, which are cut to the tower's row, or pictures as of vision.ask.pictures, of which a path
        is a pathlib.Path; a list of these, or one.

    Raises:
        UserError: what vision.ask.classify raises.
    """
    if isinstance(inputs, str):
        return embed_texts(objective, variables, [inputs], tokenizer)[0]
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(one, str) for one in inputs):
        return embed_texts(objective, variables, list(inputs), tokenizer)
    rows, alone = asked(towers(objective)[0], objective, variables, inputs)
    return rows[0] if alone else np.reshape(rows, (len(rows), objective.width))


def classify(objective, variables, tokenizer, images, classes, templates="photo"):
    """Zero-shot classification: a Classified for each picture, in a list, or one.

    Args:
        classes: names to choose among. templates: sets of multimodal/templates.py or sentences with {} for the name.
        images: as of vision.ask.pictures. The others as of `embed`. Probabilities are the softmax over the classes of
        the objective's scale times the cosines.

    Raises:
        UserError: fewer than two classes, one of no name or named twice, an unknown set of templates, and what `embed`
            raises.
    """
    known = tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else ()
    if len(known) < 2 or not all(isinstance(name, str) and name.strip() for name in known):
        raise UserError(f"classify: classes={classes!r}: give the names of two or more to choose among")
    known = tuple(map(str, known))
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise UserError(f"classify: the class {twice!r} is named twice, and would take its share twice: name it once")
    rows, alone = asked(towers(objective)[0], objective, variables, images)
    names = class_vectors(objective, variables, known, templates, tokenizer)
    logits = np.float64(objective.scale(variables["params"])) * np.float64(rows) @ names.T if rows else ()
    odds = [np.exp(row - row.max()) for row in logits]
    found = [classified(row / row.sum(), known) for row in odds]
    return found[0] if alone else found
