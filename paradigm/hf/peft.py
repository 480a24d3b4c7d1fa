"""Adapters in the peft library's format: adapter_config.json and adapter_model.safetensors beside a model of a family.

LoRA (DoRA too), (IA)3, prompt tuning and prefix tuning. A family's table of leaves says which module of theirs holds
which kernels of ours; where one holds several (GPT-2's c_attn), their A is one and ours are several: read, it is
repeated; written, the several stand side by side, with a rank that is their sum.

Names of a ViT's modules changed with version 5 of the transformers library: both are read, and those of 5 are written.
"""

import contextlib
import json
import re

import numpy as np

from paradigm import trees
from paradigm.adapt import IA3, LoRA, PromptTuning
from paradigm.adapt.ia3 import SCALE
from paradigm.adapt.lora import MAGNITUDE, A, B
from paradigm.adapt.prompt import KEY, SOFT, VALUE
from paradigm.errors import UserError
from paradigm.hf import files
from paradigm.hf.config import Config
from paradigm.hf.family import config_of, leaves_of
from paradigm.hf.leaves import Kernel, Table
from paradigm.storage import expand

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
# Of a file's origin, of training, of how weights began; which modules there are is read from the tensors themselves.
IRRELEVANT = (
    "auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision task_type runtime_config "
    "target_modules exclude_modules feedforward_modules layers_to_transform layers_pattern fan_in_fan_out "
    "init_lora_weights eva_config loftq_config megatron_config megatron_core qalora_group_size ensure_weight_tying "
    "init_ia3_weights prompt_tuning_init prompt_tuning_init_text tokenizer_kwargs tokenizer_name_or_path "
    "encoder_hidden_size init_weights token_dim num_layers num_attention_heads num_transformer_submodules"
).split()


def is_adapter(path):
    """Whether a directory is one of peft's."""
    return (path / CONFIG).is_file()


def read(path, modules, families, params):
    """(an adaptation, its leaves {module: tree} as float32 numpy arrays) of a directory that peft wrote.

    Args:
        path: the directory. modules: ours by name, which the adapter is for. families: those to choose from.
        params: the base's, which a DoRA's magnitudes are told from.

    Raises:
        UserError: an unknown kind of adapter, a setting that is not ours, or tensors of another model: the first that
            differs.
    """
    path = expand(path)
    entries = files.read_json(path / CONFIG)
    kind = entries.get("peft_type") if isinstance(entries, dict) else None
    if kind not in READERS:
        raise UserError(f"peft_type in {path / CONFIG} is {kind!r}; those that are read: {', '.join(READERS)}")
    config = Config(entries, f"{kind} adapter", path / CONFIG, irrelevant=IRRELEVANT)
    with contextlib.ExitStack() as stack:
        tensors = files.Tensors(path, stack, lambda name: name, r"$^", TENSORS)
        found = {name: tensors.read(name) for name in tensors}
    if not found:
        raise UserError(f"{path / TENSORS} holds no tensors, so that the adapter would change nothing: save it again")
    try:
        model = _Model(modules, families, dict(trees.named_leaves(params)))
    except UserError as error:
        raise UserError(
            f"{path} is of another model: an adapter is read for those that the transformers library has too, and the "
            f"base is none of them ({error})"
        ) from None
    adapt, own = READERS[kind](config, model, found, path)
    config.finish()
    return adapt, trees.nested(own)


def write(path, modules, families, adapt, params):
    """Writes adapter_config.json and adapter_model.safetensors into a directory, which is made.

    Args: as `read`; params: of the base and the adaptation's leaves, numpy or jax arrays.

    Raises:
        UserError: a method that peft does not have, or has otherwise, or not there; a file that is there already.
    """
    path, writer = expand(path), WRITERS.get(type(adapt))
    if writer is None:
        known = ", ".join(kind.__name__ for kind in WRITERS)
        raise UserError(f"the peft library has no {type(adapt).__name__} as ours is; those that are written: {known}")
    for name in (CONFIG, TENSORS):
        if (path / name).exists():
            raise UserError(f"{path / name} exists and is not written over: choose another directory")
    named = {name: np.asarray(x, np.float32) for name, x in trees.named_leaves(params)}
    model = _Model(modules, families, named)
    if lost := [name for name in named if adapt.is_own(name) and not model.reaches(name)]:
        title = model.family.title
        raise UserError(f"an adapter of a {title} in the peft library has no {lost[0]} as ours is: it is not written")
    config, tensors = writer(adapt, model)
    common = {"peft_type": config.pop("kind"), "task_type": model.task, "inference_mode": True}
    common |= {"base_model_name_or_path": None, "modules_to_save": None, "auto_mapping": None, "revision": None}
    path.mkdir(parents=True, exist_ok=True)
    files.write_tensors(path / TENSORS, tensors)
    (path / CONFIG).write_text(json.dumps(common | config, indent=2, sort_keys=True) + "\n")


class _Model:
    """A family's model: which kernels of ours its modules hold."""

    def __init__(self, modules, families, params):
        self.family, _ = config_of(modules, families)
        self.modules, self.params = modules, params
        self.parts = {}  # {their module: {(layer): Leaf}}
        for leaf in leaves_of(self.family, modules):
            if leaf.name.endswith(".weight") and isinstance(leaf.how, Kernel | Table) and leaf.how != Kernel(0):
                self.parts[self._named(leaf.name).removesuffix(".weight")] = leaf

    def _named(self, name):
        """What peft calls what is called so in the family's table."""
        return self.family.in_memory(self.family.written(name))

    @property
    def model(self):
        return self.modules.get("model")

    @property
    def task(self):
        if self.model is None or self.stack == "encoder" and not hasattr(self.model, "decode"):
            return None
        return "SEQ_2_SEQ_LM" if hasattr(self.model, "decode") else "CAUSAL_LM"

    @property
    def stack(self):
        """Whose soft tokens a prompt's are."""
        return "decoder" if any(n.startswith("model/decoder/") for n in self.params) and not hasattr(
            self.model, "decode") else "encoder"  # fmt: skip

    def reaches(self, name):
        """Whether an adapter's leaf of this name is written: beside a kernel of a module of theirs, or soft tokens."""
        beside, _, last = name.rpartition("/")
        if last in (SOFT, KEY, VALUE):
            return self.model is None or name.startswith(f"model/{self.stack}/")
        return any(path.rpartition("/")[0] == beside for leaf in self.parts.values() for path in leaf.paths)

    def leaf(self, module, path):
        """The Leaf of a module of theirs. Raises UserError where the model has none."""
        found = self.parts.get(module) or self.parts.get(self._named(self.family.rename(module)))
        if found is None:
            near = next(iter(self.parts))
            raise UserError(f"{path} is of another model: it adapts {module}, and a {self.family.title} has {near} ...")
        return found

    def kernel(self, name, layer):
        """Our kernel of this name, of one layer."""
        x = self.params[name]
        return x if layer is None else x[layer]

    def fill(self, own, name, layer, x, first=0.0):
        """Puts a layer's leaf into own[name], which is made where it is missing."""
        if layer is None:
            own[name] = np.asarray(x, np.float32)
            return
        depth = len(next(v for n, v in self.params.items() if n.startswith(name.rpartition("/")[0] + "/")))
        own.setdefault(name, np.full((depth, *x.shape), first, np.float32))
        if own[name].shape[1:] != x.shape:
            raise UserError(f"{name}: layers of different ranks in one adapter, and ours have one")
        own[name][layer] = x


def _split(x, shapes, ends_from):
    """[..., sum of outputs] -> one array [..., *out] for each shape [*in, *out] of our kernels."""
    sizes = [int(np.prod(s[ends_from:])) for s in shapes]
    parts = np.split(x, np.cumsum(sizes)[:-1], -1)
    return [p.reshape(*p.shape[:-1], *s[ends_from:]) for p, s in zip(parts, shapes)]


def _by_module(tensors, path):
    """{their module: {tensor's last name: array}}."""
    found = {}
    for name, x in tensors.items():
        match = re.fullmatch(rf"({re.escape(ROOT)})?(.*?)\.(lora_\w+(\.\w+)?|ia3_l)", name)
        if not match:
            raise UserError(f"{path} holds {name}, which no adapter of this kind that we read has")
        found.setdefault(match[2], {})[match[3].removesuffix(".weight")] = x
    return found


def _inputs(leaf):
    return leaf.how.inputs if isinstance(leaf.how, Kernel) else 1


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def _read_lora(config, model, tensors, path):
    rank, alpha = config.get("r", 8), float(config.get("lora_alpha", 8, kind=float))
    stabilized, dora = config.get("use_rslora", False), config.get("use_dora", False)
    dropout = config.get("lora_dropout", 0.0)
    config.only(bias="none", lora_bias=False, modules_to_save=None, use_qalora=False)
    if config.entries.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):
        config.refuse("init_lora_weights", "it changes the base's weights")
    alphas, more_ranks = (config.get(name, {}, dict) for name in ("alpha_pattern", "rank_pattern"))
    for name, table, kind in (("alpha_pattern", alphas, float), ("rank_pattern", more_ranks, int)):
        trees.check_table(table.items(), f"{name} in {path / CONFIG}", kind)
        if any(not x > 0 for x in table.values()):
            config.refuse(name, "they have numbers above 0")
    if not alpha > 0:
        config.refuse("lora_alpha", "it is above 0 in them")
    said = {rank, *more_ranks.values()}
    own, ranks, scales = {}, {}, {}
    for module, parts in _by_module(tensors, path).items():
        leaf = model.leaf(module, path)
        table = "lora_embedding_A" in parts
        names = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A", "lora_B")
        if parts.keys() != (has := {*names, *["lora_magnitude_vector"] * dora}):
            raise UserError(f"{path}: {module} has {', '.join(sorted(parts))}, where its config says a LoRA with "
                            f"use_dora={dora}, of {', '.join(sorted(has))}: save it again")  # fmt: skip
        a, b = (parts[name] for name in names)
        if len(a) not in said:  # the scale is by the rank
            ours = " or ".join(map(str, sorted(said)))
            raise UserError(f"{path}: {module} is of rank {len(a)}, and its config says {ours}: save it again")
        own_alpha = next((x for key, x in alphas.items() if re.fullmatch(rf"(.*\.)?({key})", module)), alpha)
        scale = own_alpha / (len(a) ** 0.5 if stabilized else len(a))
        shapes, inputs = [model.kernel(p, leaf.layer).shape for p in leaf.paths], _inputs(leaf)
        wanted = int(np.prod(shapes[0][:inputs])), sum(int(np.prod(s[inputs:])) for s in shapes)
        if (a.shape[1], b.shape[0]) != wanted or a.shape[0] != b.shape[1]:
            raise UserError(f"{path} is of another model: {module} adapts {a.shape[1]} x {b.shape[0]}, and ours is "
                            f"{wanted[0]} x {wanted[1]}")  # fmt: skip
        more = _split(parts["lora_magnitude_vector"].reshape(-1), shapes, inputs) if dora else [None] * len(shapes)
        for name, shape, part, magnitude in zip(leaf.paths, shapes, _split(b.T, shapes, inputs), more):
            beside, kind = name.rsplit("/", 1)
            scales.setdefault(name, scale)
            ranks[name] = len(a)
            model.fill(own, f"{beside}/{A}", leaf.layer, a.T.reshape(*shape[:inputs], -1))
            model.fill(own, f"{beside}/{B}", leaf.layer, part * np.float32(scale / scales[name]))
            if dora:
                kernel = model.kernel(name, leaf.layer)
                norm = np.sqrt(np.square(kernel).sum(tuple(range(inputs))))
                model.fill(own, f"{beside}/{MAGNITUDE}", leaf.layer, magnitude - norm)
    exact = lambda name: f"^{re.escape(name)}$"
    divisor = lambda r: r**0.5 if stabilized else r
    return LoRA(
        rank=rank,
        alpha=alpha,
        rank_stabilized=stabilized,
        dropout=dropout,
        dora=dora,
        targets=tuple(map(exact, ranks)),
        ranks=tuple((exact(n), r) for n, r in ranks.items() if r != rank),
        alphas=tuple((exact(n), s * divisor(ranks[n])) for n, s in scales.items() if s != alpha / divisor(ranks[n])),
    ), own


def _write_lora(adapt, model):
    divisor = lambda r: r**0.5 if adapt.rank_stabilized else r
    tensors, ranks, alphas, conv = {}, {}, {}, False
    for module, leaf in model.parts.items():
        used = [name for name in leaf.paths if f"{name.rpartition('/')[0]}/{A}" in model.params]
        if not used:
            continue
        inputs, conv = _inputs(leaf), conv or not getattr(leaf.how, "torch", True)
        beside = lambda name, what: model.kernel(f"{name.rpartition('/')[0]}/{what}", leaf.layer)
        flat = lambda x, lead: x.reshape(int(np.prod(x.shape[:lead])), -1)
        all_a = {name: flat(beside(name, A), inputs) for name in used}  # [in, r]
        scale = adapt.scale_of(used[0])
        one = len(used) == len(leaf.paths) and all(np.array_equal(x, all_a[used[0]]) for x in all_a.values())
        rows = list(all_a.values())[:1] if one else list(all_a.values())
        total, b, at = sum(x.shape[1] for x in rows), [], 0
        for name in leaf.paths:
            kernel = model.kernel(name, leaf.layer)
            outputs = int(np.prod(kernel.shape[inputs:]))
            block = np.zeros((total, outputs), np.float32)
            if name in used:
                part = flat(beside(name, B), 1) * np.float32(adapt.scale_of(name) / scale)
                block[at : at + len(part)] = part
                at += 0 if one else len(part)
            b.append(block)
        a, b = np.concatenate(rows, 1).T, np.concatenate(b, 1).T
        table = isinstance(leaf.how, Table)
        for kind, x in (("A", a), ("B", b)):
            tensors[f"{ROOT}{module}.lora_embedding_{kind}" if table else f"{ROOT}{module}.lora_{kind}.weight"] = x
        if adapt.dora:
            norms = []
            for name in leaf.paths:
                kernel = model.kernel(name, leaf.layer)
                norm = np.sqrt(np.square(kernel).sum(tuple(range(inputs))))
                norms.append((norm + (beside(name, MAGNITUDE) if name in used else 0)).reshape(-1))
            tensors[f"{ROOT}{module}.lora_magnitude_vector"] = np.concatenate(norms)
        if total != adapt.rank:
            ranks[module] = total
        if scale != adapt.alpha / divisor(total):
            alphas[module] = scale * divisor(total)
    return {
        "kind": "LORA",
        "r": adapt.rank,
        "lora_alpha": adapt.alpha,
        "lora_dropout": adapt.dropout,
        "use_rslora": adapt.rank_stabilized,
        "use_dora": adapt.dora,
        "bias": "none",
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": conv,
        "target_modules": sorted({name[len(ROOT) :].split(".lora_")[0] for name in tensors}),
    }, tensors


# ---- (IA)3 -----------------------------------------------------------------------------------------------------------


def _read_ia3(config, model, tensors, path):
    config.only(modules_to_save=None)
    own, places = {}, {"inputs": [], "outputs": []}
    for module, parts in _by_module(tensors, path).items():
        leaf, x = model.leaf(module, path), parts["ia3_l"]
        shapes, inputs = [model.kernel(p, leaf.layer).shape for p in leaf.paths], _inputs(leaf)
        place = "inputs" if x.shape[0] == 1 else "outputs"
        size = int(np.prod(shapes[0][:inputs])) if place == "inputs" else sum(int(np.prod(s[inputs:])) for s in shapes)
        if x.size != size or place == "inputs" and len(shapes) > 1:
            raise UserError(f"{path} is of another model: {module} has {x.size} {place}, and ours has {size}")
        factors = [x.reshape(shapes[0][:inputs])] if place == "inputs" else _split(x.reshape(-1), shapes, inputs)
        for name, factor in zip(leaf.paths, factors):
            model.fill(own, f"{name.rpartition('/')[0]}/{SCALE}", leaf.layer, factor, 1.0)
            places[place].append(f"^{re.escape(name)}$")
    return IA3(**{place: tuple(dict.fromkeys(names)) for place, names in places.items()}), own


def _write_ia3(adapt, model):
    tensors, forward, conv = {}, [], False
    for module, leaf in model.parts.items():
        inputs = _inputs(leaf)
        beside = lambda name: model.params.get(f"{name.rpartition('/')[0]}/{SCALE}")
        if all(beside(name) is None for name in leaf.paths):
            continue
        conv = conv or not getattr(leaf.how, "torch", True)
        layer = lambda x: x if leaf.layer is None else x[leaf.layer]
        if adapt.place(leaf.paths[0]) == "inputs" and len(leaf.paths) == 1:
            tensors[f"{ROOT}{module}.ia3_l"] = layer(beside(leaf.paths[0])).reshape(1, -1)
            forward.append(module)
            continue
        if any(adapt.place(name) == "inputs" for name in leaf.paths):
            raise UserError(f"the inputs of {module} are those of several of our kernels, which IA3 scales apart")
        ones = lambda name: np.ones(model.kernel(name, leaf.layer).shape[inputs:], np.float32)
        factors = [ones(n) if beside(n) is None else layer(beside(n)) for n in leaf.paths]
        tensors[f"{ROOT}{module}.ia3_l"] = np.concatenate([x.reshape(-1) for x in factors])[:, None]
    return {
        "kind": "IA3",
        "target_modules": sorted(name[len(ROOT) : -len(".ia3_l")] for name in tensors),
        "feedforward_modules": sorted(forward),
        "fan_in_fan_out": conv,
    }, tensors


# ---- Prompts and prefixes --------------------------------------------------------------------------------------------


def _read_prompt(config, model, tensors, path):
    length = config.get("num_virtual_tokens")
    soft = _only(tensors, path)
    if model.model is None or soft.shape[1] != model.model.d_model or soft.shape[0] not in (length, 2 * length):
        raise UserError(f"{path} is of another model: its soft tokens are {soft.shape[0]} x {soft.shape[1]}")
    return PromptTuning(length=length), {f"model/{model.stack}/{SOFT}": soft[:length]}


def _write_prompt(adapt, model):
    if model.model is None:
        raise UserError("the peft library's prompts are for texts: an image's soft tokens are not written")
    sizes = {"num_virtual_tokens": adapt.length, "num_layers": model.model.layers}
    sizes |= {"token_dim": model.model.d_model, "num_attention_heads": model.model.heads}
    pair = hasattr(model.model, "decode")
    sizes["num_transformer_submodules"] = 2 if pair else 1
    if adapt.place == "input":
        soft = model.params[f"model/{model.stack}/{SOFT}"]
        if adapt.tokens or adapt.start != "random":
            soft = soft + model.params["model/embed/embedding"][list(adapt.ids(model.model.vocab_size))]
        return {"kind": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM", **sizes}, {
            "prompt_embeddings": np.concatenate([soft, soft]) if pair else soft
        }
    if adapt.place != "attention" or pair:
        raise UserError(f"the peft library has no {'pair of prefixes' if pair else 'soft tokens before each layer'} as "
                        "ours: it is not written")  # fmt: skip
    keys, values = (model.params[f"model/{model.stack}/layers/attention/{name}"] for name in (KEY, VALUE))
    both = np.stack([keys, values], 1)  # [n, 2, P, G, K]
    heads, width = both.shape[3:]
    sizes |= {"num_attention_heads": heads, "token_dim": heads * width}
    prefix = both.transpose(2, 0, 1, 3, 4).reshape(adapt.length, -1)
    return {"kind": "PREFIX_TUNING", "prefix_projection": False, **sizes}, {"prompt_embeddings": prefix}


def _read_prefix(config, model, tensors, path):
    length, prefix = config.get("num_virtual_tokens"), _only(tensors, path)
    config.only(prefix_projection=False)
    text = model.model
    if text is None or hasattr(text, "decode"):
        raise UserError(f"{path}: prefixes are read for an Encoder or a Decoder of texts")
    shape = (length, text.layers, 2, text.key_heads, text.head_width)
    if prefix.size != np.prod(shape):
        raise UserError(f"{path} is of another model: its prefix has {prefix.size} numbers, and ours {np.prod(shape)}")
    both = prefix.reshape(shape).transpose(1, 2, 0, 3, 4)  # [n, 2, P, G, K]
    at = f"model/{model.stack}/layers/attention"
    return PromptTuning(length=length, place="attention"), {f"{at}/{KEY}": both[:, 0], f"{at}/{VALUE}": both[:, 1]}


def _only(tensors, path):
    if set(tensors) != {"prompt_embeddings"}:
        raise UserError(f"{path} holds {', '.join(sorted(tensors))}, and an adapter of this kind has prompt_embeddings")
    return tensors["prompt_embeddings"]


READERS = {"LORA": _read_lora, "IA3": _read_ia3, "PROMPT_TUNING": _read_prompt, "PREFIX_TUNING": _read_prefix}
WRITERS = {LoRA: _write_lora, IA3: _write_ia3, PromptTuning: _write_prompt}
