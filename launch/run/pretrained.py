"""Weights of the transformers library as parameters of ours, whatever package has the model."""

from paradigm import hf


def families():
    """All that can be read."""
    from multimodal import hf as pairs
    from t5like import hf as text
    from vision import hf as images

    return (*text.FAMILIES, *images.FAMILIES, *pairs.FAMILIES)


def is_pretrained(path):
    """Whether a directory is one of save_pretrained."""
    return (path / hf.CONFIG).is_file() and not (path / "checkpoints").exists()


def read(path):
    """(modules, parameters), both by module name, of a directory of save_pretrained. Raises as `paradigm.hf.read`."""
    return hf.read(path, families())


def tokenizer(path):
    """The tokenizer whose files lie in such a directory; None where there is none, or none of a kind that is known."""
    from launch.storage.sync import at_hand
    from paradigm.errors import UserError
    from t5like.tokenizers import get_tokenizer

    if not is_pretrained(path):
        return None
    with at_hand(path) as directory:
        try:
            return get_tokenizer(str(directory))
        except UserError:
            return None
