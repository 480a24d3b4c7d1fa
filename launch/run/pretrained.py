"""Weights of the transformers library as parameters of ours, whatever package has the model."""

import json

from paradigm import tensor_files


def is_pretrained(path):
    """Whether a directory is one of save_pretrained."""
    return (path / tensor_files.CONFIG).is_file() and not (path / "checkpoints").exists()


def read(path):
    """(what the model is, parameters {module's name: tree}) of a directory of save_pretrained.

    Raises:
        UserError: as the `read` of t5like.weights, vision.weights and multimodal.weights.
    """
    from multimodal import layouts as of_pairs
    from multimodal import weights as pairs
    from t5like import weights as text
    from vision import layouts as of_images
    from vision import weights as images

    try:
        kind = json.loads((path / tensor_files.CONFIG).read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None  # text's reader says what is wrong with the directory
    if kind in of_images.FAMILIES:
        return images.read(path)
    if kind in of_pairs.FAMILIES:
        return pairs.read(path)
    model, params = text.read(path)
    return model, {"model": params}
