"""A family of models that the transformers library has too, and how any is read and written.

Modules are dicts by name, as in an objective; parameters are trees by the same names, and scalars beside them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from paradigm.errors import UserError
from paradigm.hf import files
from paradigm.hf.config import Config
from paradigm.storage import expand

# Fields of a module that say how it is initialised, trained or compiled, and not what it computes.
FREE = frozenset(
    "init_std embed_std position_std token_std scaled_init dropout_style drop_path dtype remat scan parent name".split()
)
# Fields of an Architecture that may be None, or that nothing reads, as what they come to.
MEANING = {
    "head_dim": lambda m: m.head_width,
    "kv_heads": lambda m: m.key_heads,
    "qkv_bias": lambda m: m.bias if m.qkv_bias is None else m.qkv_bias,
    "out_bias": lambda m: m.bias if m.out_bias is None else m.out_bias,
    "attention_dropout": lambda m: m.dropout if m.attention_dropout is None else m.attention_dropout,
    "embed_width": lambda m: m.embed_features,
    "rope_theta": lambda m: m.rope_theta if m.positions == "rope" else None,
    "local_theta": lambda m: (m.rope_theta if m.local_theta is None else m.local_theta) if m.global_every else None,
    "rope_scaling": lambda m: m.rope_scaling if m.positions == "rope" else None,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One architecture of the transformers library.

    title, model_type: for people, and as in config.json.
    kinds: {name: type} of our modules. when: modules -> whether they are this family's among those of the same kinds.
    modules: (Config, Tensors) -> our modules. config: our modules -> config.json.
    leaves: our modules -> [Leaf], whose paths begin with `root`.
    inputs: our modules -> {name: tuple of example inputs}.
    free: fields that decide nothing, beside FREE; those of one module alone as module.field.
    meaning: {field: module -> value} of fields that may be None, beside MEANING.
    scalars: names of the parameters [] beside the modules.
    ignored: regex of the table's names that files hold and no model of ours reads.
    rename: name in a file -> name in the table. written: name in the table -> name in our file. in_memory: that ->
        what the library calls it in a model, by which peft names adapters; in version 5 often something else.
    irrelevant: entries of config.json without effect on what is computed, beside those of every family.
    heads: whether modules beside these may stay behind.
    architectures: of config.json, by which families of one model_type are told apart; () for any.
    """

    title: str
    model_type: str
    kinds: Mapping
    modules: Callable
    config: Callable
    leaves: Callable
    inputs: Callable
    when: Callable = lambda modules: True
    root: str = ""
    free: frozenset = frozenset()
    meaning: Mapping = dataclasses.field(default_factory=dict)
    scalars: tuple = ()
    ignored: str = r"$^"
    rename: Callable = lambda name: name
    written: Callable = lambda name: name
    in_memory: Callable = lambda name: name
    irrelevant: tuple = ()
    heads: bool = False
    architectures: tuple = ()

    def reads(self, entries):
        """Whether a config.json is one of this family."""
        named = entries.get("architectures") or self.architectures
        return entries.get("model_type") == self.model_type and (
            not self.architectures
            or (isinstance(named, list | tuple) and any(name in self.architectures for name in named))
        )


def read(path, families, modules=None):
    """Modules and their parameters, from a directory that the transformers library's save_pretrained wrote.

    Tensors pass one at a time, so that the host holds the parameters once and one tensor more. Strict: every entry of
    config.json has an effect, is known to have none, or is refused; a tensor that is missing, left over or of another
    shape is an error. Nothing is unpickled.

    Args:
        path: directory with config.json and model.safetensors, or its shards and their index.
        families: those to choose from.
        modules: ours by name, whose dtype, remat and so on are to be kept; None makes them from config.json.

    Returns:
        (modules, params): by module name; params nested dicts of float32 numpy arrays, layers stacked.

    Raises:
        UserError: files missing or damaged; an architecture or a setting that is not ours; modules that compute
            something else; a tensor that is missing, left over, or of another shape: its name, the shape wanted and
            the shape found.
    """
    with _opened(path, families) as (family, found, tensors):
        if modules is None:
            modules = found
        elif modules.keys() != family.kinds.keys() or not _fits(family, modules):
            raise UserError(f"{path} holds a {family.title}, and the modules are {_described(modules)}")
        for field, ours, theirs in differences(family, modules, found):
            raise UserError(f"{path} holds a {family.title} with {field}={theirs!r}; the model has {field}={ours!r}")
        return modules, files.load(path, leaves_of(family, modules), abstract(family, modules), tensors)


def read_modules(path, families):
    """The modules alone, without reading their parameters. Args, raises: as of `read`."""
    with _opened(path, families) as (_, modules, _):
        return modules


@contextlib.contextmanager
def _opened(path, families):
    """(the Family, its modules as config.json has them, the Tensors) of a directory."""
    path = expand(path)
    where, entries, file = files.described(path)
    found = entries if isinstance(entries, dict) else {}
    kind, family = found.get("model_type"), next((f for f in families if f.reads(found)), None)
    if family is None and kind in (f.model_type for f in families):
        known = ", ".join(name for f in families if f.model_type == kind for name in f.architectures)
        raise UserError(
            f"architectures in {where} is {entries['architectures']}; of {kind}, these can be read: {known}"
        )
    if family is None:
        known = ", ".join(dict.fromkeys(f.model_type for f in families))
        raise UserError(f"model_type in {where} is {kind!r}, which is none of those that can be read: {known}")
    with contextlib.ExitStack() as stack:
        tensors = files.Tensors(path, stack, family.rename, family.ignored, file)
        config = Config(entries, family.title, where, irrelevant=family.irrelevant)
        modules = family.modules(config, tensors)
        config.finish()
        yield family, modules, tensors


def write(path, modules, params, families, **entries):
    """Writes config.json and model.safetensors, in float32, into a directory, which is made.

    Args:
        path: the directory. What is in it is not written over.
        modules: ours by name. params: their parameters by the same names, and scalars, numpy or jax arrays, in any
            sharding of this process. What a family that permits it does not have, heads, stays behind.
        families: those to choose from.
        entries: of config.json, in place of what the modules say; objects are merged.

    Returns:
        the names of modules that stayed behind.

    Raises:
        UserError: the library cannot say what the modules compute; the parameters are not theirs; a file is there
            already or cannot be written.
    """
    family, config = config_of(modules, families)
    for name, value in entries.items():
        config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
    left = [name for name in modules if name not in family.kinds]
    kept = {name: x for name, x in params.items() if name not in left}
    wanted = abstract(family, modules)
    files.save(expand(path), config, leaves_of(family, modules), wanted, kept, family.written)
    return left


def family_of(modules, families):
    """The families of our modules, those of the most modules. Raises UserError when there is none."""
    found = [f for f in families if _fits(f, modules)]
    if not found:
        known = "; ".join(f"{f.title} ({_described(f.kinds)})" for f in families)
        raise UserError(f"the transformers library has no {_described(modules)}; what can be written: {known}")
    return [f for f in found if len(f.kinds) == max(len(f.kinds) for f in found)]


def config_of(modules, families):
    """(family, config.json as a dict) of the first family that can say what our modules compute.

    Raises:
        UserError: none can; names the field in which the nearest differs.
    """
    nearest = None
    for family in family_of(modules, families):
        config = family.config(modules)
        written = _Written({leaf.name: leaf for leaf in family.leaves(modules)})
        other = family.modules(Config(config, family.title, irrelevant=family.irrelevant), written)
        found = differences(family, modules, other)
        if not found:
            return family, config
        if nearest is None or len(found) < len(nearest[1]):
            nearest = family, found
    family, [(field, ours, theirs), *_] = nearest
    has = f"the transformers library's {family.title} has {field}={theirs!r}"
    raise UserError(f"{has}; a model with {field}={ours!r} cannot be written")


def differences(family, modules, others):
    """[(field, the modules', the others')] of the fields that decide what is computed."""
    found = []
    for name in family.kinds:
        prefix = "" if name == "model" else f"{name}."
        for field, *values in differing(modules[name], others[name], MEANING | family.meaning):
            if not {field, prefix + field} & (FREE | family.free):
                found.append((prefix + field, *values))
    return found


def differing(a, b, meaning=MEANING):
    """[(field, a's, b's)] of the fields that both modules have and mean something else by."""
    fields = [field for field in type(b).__dataclass_fields__ if field in type(a).__dataclass_fields__]
    value = lambda m, field: meaning[field](m) if field in meaning else getattr(m, field)
    found = [(field, value(a, field), value(b, field)) for field in fields]
    return [(field, ours, theirs) for field, ours, theirs in found if ours != theirs]


def leaves_of(family, modules):
    """The family's leaves, with the whole paths of ours."""
    return [dataclasses.replace(x, paths=tuple(family.root + p for p in x.paths)) for x in family.leaves(modules)]


def abstract(family, modules):
    """Our parameters by name as ShapeDtypeStructs."""
    inputs = family.inputs(modules)
    made = lambda name: jax.eval_shape(modules[name].init, jax.random.key(0), *inputs[name]).get("params", {})
    scalars = {name: jax.ShapeDtypeStruct((), np.float32) for name in family.scalars}
    return {name: tree for name in family.kinds if (tree := made(name))} | scalars


class _Written(dict):
    """The leaves of a file that is to be written, as Tensors has those of one that is read."""

    def read(self, name):
        return getattr(self[name].how, "value", np.zeros(()))


def _fits(family, modules):
    kinds = {name: type(module) for name, module in modules.items()}
    beside = kinds.keys() - family.kinds.keys()
    same = all(kinds.get(name) is kind for name, kind in family.kinds.items())
    return same and (family.heads or not beside) and family.when(modules)


def _described(modules):
    """name: type of modules, or of types."""
    kind = lambda x: x if isinstance(x, type) else type(x)
    return ", ".join(f"{name}: {kind(x).__name__}" for name, x in modules.items())
