"""`--base=DIR`: an objective on a pre-trained model as it is there, whatever the run file makes.

    lines = bindings(DIR, registry.parse(files, params))
    experiment = registry.parse(files, [*lines, *params])

The model's settings, its tokenizer and where its parameters are become bindings on top of the run file's, so that
config.gin has them all. How a model is trained and computed (drop_path, remat, dtype ...: FREE) stays the run file's;
what a person binds beside counts more than either.
"""

import dataclasses

from launch.run import pretrained
from launch.run.initial import run_modules
from launch.storage import filesystem
from paradigm.errors import UserError
from paradigm.hf.family import FREE
from paradigm.objective import BODIES

# Which function of gin makes a module of this class, and what it is told before its fields.
MAKERS = {
    "Encoder": ("bert", {"size": "tiny", "style": "bert"}),
    "Decoder": ("gpt", {"size": "tiny", "style": "rope"}),
    "EncoderDecoder": ("t5", {"size": "tiny", "version": "1.1"}),
    "ViT": ("vit", {"size": "tiny"}),
    "ResNet": ("resnet", {"depth": "18"}),
    "ClipViT": ("clip_vit", {"size": "tiny"}),
}


def bindings(base, experiment):
    """The lines by which an experiment's objective has the model of `base`, a run or a directory of the transformers
    library, and begins with its parameters.

    Raises:
        UserError: nothing there, or of no known architecture; an objective of several parts, or of another kind.
    """
    objective, path = experiment.objective, filesystem.as_path(base)
    owner = type(objective).__name__
    if pretrained.is_pretrained(path):
        theirs = pretrained.modules(path)
        moments = pretrained.moments(path, theirs)
    else:
        theirs, moments = run_modules(path)
    own = [name for name in _fields(objective) if name in BODIES]
    if len(own) != 1:  # of two towers the heads have to fit as well
        raise UserError(
            f"--base={base}: {owner} has several models, or none: describe them in a gin file, and say in "
            "Experiment.init what they begin with"
        )
    [name] = own
    if name not in theirs:
        kinds = ", ".join(f"{name} ({type(module).__name__})" for name, module in theirs.items())
        raise UserError(f"--base={base} holds {kinds}, and {owner} reads {name}: take another base")
    lines = [*_model(base, f"{owner}.{name}", theirs[name]), *_data(base, experiment.data, theirs[name])]
    here = pretrained.moments_of(objective, getattr(theirs[name], "channels", None))
    if told := pretrained.other_moments(*moments, here):
        print(told, flush=True)
    return [*lines, "Experiment.init = (@base/Init(),)", f"base/Init.path = {str(base)!r}", "base/Init.bodies = True"]


def _model(base, setting, module):
    """Lines that make a setting this module: all of its fields, since a run file may have set any of them."""
    kind = type(module).__name__
    if kind not in MAKERS:
        known = ", ".join(MAKERS)
        raise UserError(f"--base={base} holds a {kind}, and models to adapt are {known}: describe it in a gin file")
    maker, first = MAKERS[kind]
    fields = {f: getattr(module, f) for f in _fields(module) if f not in FREE}
    lines = [f"{setting} = @{maker}()"]
    for name, value in {**first, **fields}.items():
        if dataclasses.is_dataclass(value):  # a value of rope.py
            scope = f"{maker}_{name}"
            lines += [f"{scope}/{type(value).__name__}.{f} = {getattr(value, f)!r}" for f in _fields(value)]
            value = f"@{scope}/{type(value).__name__}()"
        else:
            value = repr(value)
        lines.append(f"{maker}.{name} = {value}")
    return lines


def _data(base, recipe, module):
    """Lines that make data ones that the module can read: ids of its tokenizer, or pictures of its channels."""
    name, settings = type(recipe).__name__, _fields(recipe)
    if getattr(recipe, "turns", "") and pretrained.has_chat_template(filesystem.as_path(base)):
        print(f"note: {base} has a chat template, which is not read: turns are written as {name}.turn says", flush=True)
    if "channels" in _fields(module):
        return [f"{name}.channels = {module.channels}"] if "channels" in settings else []
    lines = [f"{name}.tokenizer = {str(base)!r}"] if "tokenizer" in settings else []
    return lines + ([f"{name}.specials = ()"] if "specials" in settings else [])  # of the run file's tokenizer


def _fields(value):
    return [field.name for field in dataclasses.fields(value)]
