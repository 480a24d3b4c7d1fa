"""Weights of the transformers library as parameters of ours, whatever package has the model."""

import numpy as np

from paradigm import hf
from paradigm.capabilities import ImageFeatures, parts
from paradigm.errors import UserError
from paradigm.hf import files
from paradigm.objective import BODIES


def families():
    """All that can be read."""
    from multimodal import hf as pairs
    from t5like import hf as text
    from vision import hf as images

    return (*text.FAMILIES, *images.FAMILIES, *pairs.FAMILIES)


def is_pretrained(path):
    """Whether a directory is one of save_pretrained, or of open_clip."""
    return any((path / name).is_file() for name in (hf.CONFIG, hf.OPEN_CLIP[0])) and not (path / "checkpoints").exists()


def read(path):
    """(modules, parameters), both by module name, of a directory of save_pretrained. Raises as `paradigm.hf.read`."""
    return hf.read(path, families())


def modules(path):
    """The modules by name of such a directory, without their parameters. Raises as `read`."""
    return hf.read_modules(path, families())


def bodies(objective):
    """The modules that a family of the library has: all of a pair's, and without heads of others'."""
    modules = {name: module for name, (module, _) in objective.modules().items()}
    return modules if "text" in modules else {name: m for name, m in modules.items() if name in BODIES}


def adapter(path, objective, base):
    """The leaves {name: array} of an adapter of the peft library, for an objective adapted in the same way.

    base: {name: array} of the parameters that it adapts.

    Raises:
        UserError: as `paradigm.hf.peft.read`; no base; an objective with another adaptation.
    """
    from paradigm import trees
    from paradigm.adapt import LoRA
    from paradigm.hf import peft

    if not base:
        raise UserError(
            f"{path} is an adapter: name its base before it in Experiment.init, (Init(BASE), Init(ADAPTER))"
        )
    found, own = peft.read(path, bodies(objective), families(), trees.nested(base))
    ours, own = objective.adapt, dict(trees.named_leaves(own))
    if type(found) is not type(ours):
        raise UserError(f"{path} is a {type(found).__name__}, and the objective's adaptation is "
                        f"{'None' if ours is None else type(ours).__name__}: set Experiment.adapt")  # fmt: skip
    unused = set()
    for name in own if isinstance(ours, LoRA) else ():
        kernel = next(n for n in base if n.rpartition("/")[0] == name.rpartition("/")[0] and found.rank_of(n))
        beside = kernel.rpartition("/")[0]
        if not ours.rank_of(kernel) and not own[f"{beside}/lora_b"].any():
            unused.add(beside)  # theirs holds several kernels of ours, and this one it leaves as it is
    ours.check_same(found, [(name, name) for name in own], path)
    return {name: x for name, x in own.items() if name.rpartition("/")[0] not in unused}


def moments(path, modules):
    """By which mean and deviation the pictures of such a directory are normalised, as `paradigm.hf.moments`; modules:
    as of `modules`."""
    return hf.moments(path, modules["encoder"].channels) if hasattr(modules.get("encoder"), "channels") else ({}, None)


def moments_of(objective, channels=None):
    """The same {"mean", "std"} of an objective's views; {} of one without pictures. channels: None: the encoder's."""
    seen = [part.objective for part in parts(objective) if isinstance(part.objective, ImageFeatures)]
    both = [seen[0].views[0].moments(channels or seen[0].encoder.channels)] if seen else []
    return {name: x.tolist() for pair in both for name, x in zip(("mean", "std"), pair)}


def other_moments(there, where, here):
    """A line where pictures are normalised otherwise `here` than `there`, each as of `moments_of`; "" where not, or
    where nothing is known of one."""
    if not there or not here or all(np.allclose(here[name], x, atol=1e-3) for name, x in there.items()):
        return ""
    text = lambda both: " and deviation ".join(f"({', '.join(f'{x:.3g}' for x in row)})" for row in both.values())
    return (
        f"note: {where} has pictures of mean {text(there)}, and the run file's views of {text(here)}: bind mean and "
        "std of its augment"
    )


def has_chat_template(path):
    """Whether a directory says how a dialogue is written for its model."""
    said = path / "tokenizer_config.json"
    inside = files.read_json(said) if said.is_file() else {}
    return (path / "chat_template.jinja").is_file() or bool(isinstance(inside, dict) and inside.get("chat_template"))


def tokenizer(path):
    """The tokenizer whose files lie in such a directory; None where there is none, or none of a kind that is known."""
    from launch.storage.sync import at_hand
    from t5like.tokenizers import get_tokenizer

    if not is_pretrained(path):
        return None
    with at_hand(path) as directory:
        try:
            return get_tokenizer(str(directory))
        except UserError:
            return None
