"""The state that a run begins with: from its own checkpoint, from other runs' or others' weights, or drawn."""

import functools
import re
from typing import Any, NamedTuple

from flax import linen as nn

from launch.run import pretrained, registry
from launch.run.data import labels_of, tokenizer_of
from launch.run.experiment import Init, bound
from launch.storage import filesystem
from launch.storage.checkpoint import Checkpoints
from launch.storage.workdir import open_run
from paradigm import rng, trees
from paradigm.capabilities import parts
from paradigm.classes import OnClasses
from paradigm.errors import UserError
from paradigm.hf import peft
from paradigm.hf.family import FREE, differing
from paradigm.objective import BODIES
from paradigm.step import init_state

# Of a module: what training alone reads, or sizes, or what its leaves show.
NOT_TOLD = FREE | frozenset("dropout attention_dropout vocab_size max_length image_size mask_token".split())
TABLES = ("embed/embedding", "logits/kernel")  # the parameters that have a row for each id


def make_state(experiment, given=None, stats=None):
    """The TrainState at step 0; traceable, so that its shapes are known before it is made.

    given: parameters to start with, {name: array}; None for none. stats: the same of extra (see `running_stats`).
    """
    e, params = experiment, None
    taken = lambda given: lambda name, x: given.get(name, x)
    if given is not None:
        drawn, adapt = e.objective.init(rng.key(e.seed, "params")), e.objective.adapt
        first = dict(trees.named_leaves(drawn))
        # Moments and averages begin from these, so that what param_dtype stores has to wait for init_state.
        given = {name: x.astype(first[name].dtype) for name, x in given.items()}
        if adapt is not None:
            given = {name: adapt.begin(name, first[name], x) for name, x in given.items()}
        params = trees.named_map(taken(given), drawn)
    state = init_state(e.objective, e.optimizer, e.seed, e.ema, params, e.freeze, e.param_dtype, e.moment_dtype)
    return state.replace(extra=trees.named_map(taken(stats), state.extra)) if stats else state


def evaluated(arrays):
    """{name: array} of the parameters in a checkpoint by which its run is evaluated: the average, where one is kept."""
    named = dict(trees.named_leaves(arrays["params"]))
    return named | dict(trees.named_leaves(arrays.get("extra", {}).get("ema", {})))


def running_stats(extra):
    """{name in extra: leaf} of running statistics, a combination's parts' and a teacher's too."""
    return {name: x for name, x in trees.named_leaves(extra) if "batch_stats" in name.split("/")}


def stats_for(wanted, found):
    """{name: leaf of `found`} of those wanted that it has, both as `running_stats` gives them: from the same place, or
    else what belongs to the same parameters in another part."""
    of_parameters = {
        _in_module(name): name for name in sorted(found, key=lambda name: "teacher" not in name.split("/"))
    }
    places = {name: name if name in found else of_parameters.get(_in_module(name)) for name in wanted}
    return {n: found[at] for n, at in places.items() if at is not None and found[at].shape == wanted[n].shape}


def _in_module(name):
    """'encoder/norm/mean' of 'clip/batch_stats/encoder/norm/mean'."""
    return name.split("batch_stats/", 1)[1]


def sources(experiment, init_from=None, init_partly_from=None):
    """The Inits of a new run: the experiment's, or what a flag is short for. Raises UserError for two of them."""
    given = {
        "Experiment.init": experiment.init,
        f"--init_from={init_from}": (Init(init_from),) if init_from else (),
        f"--init_partly_from={init_partly_from}": (Init(init_partly_from, strict=False),) if init_partly_from else (),
    }
    named = [name for name, inits in given.items() if inits]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)}: give one of them; Experiment.init takes several sources")
    return given[named[0]] if named else ()


def initial_state(program, checkpoints, inits=()):
    """What a call of `train` begins with: this run's newest checkpoint > inits > scratch.

    Args:
        program: launch.run.program.Program. checkpoints: this run's. inits: a tuple of Init.

    Returns:
        (function that makes the state, meta as a checkpoint has it, a line that says where the state is from).

    Raises:
        UserError: nothing there, parameters that do not fit, two sources for one, or a frozen module that none gives.
    """
    fresh = {"data": None, "progress": {"logged": 0, "evaluated": 0, "window": {}}}
    restored = checkpoints.restore(program.state)
    if restored is not None:
        state, meta = restored
        also = f" ({', '.join(str(init.path) for init in inits)} is for new runs)" if inits else ""
        return lambda: state, meta, f"resumed from step {int(state.step)}{also}"
    wanted = dict(trees.named_leaves(program.state.all_params))
    wanted_stats = running_stats(program.state.extra)
    given, stats, lines, vocabularies, tokenizers, labels = {}, {}, [], [], [], []
    is_new = functools.partial(_is_new, program.experiment.objective, bodies=any(init.bodies for init in inits))
    named = [part.objective for part in parts(program.experiment.objective) if isinstance(part.objective, OnClasses)]
    heads = {head for objective in named for head in objective.heads}
    for init in inits:
        source = _read(init, program.experiment.objective, given)
        found, where, vocabulary = source.params, source.where, source.vocabulary
        theirs = sorted({name.split("/")[0] for name in found})
        if init.bodies or program.experiment.objective.adapt is not None:
            found, behind = _of_bodies(program.experiment.objective, found, wanted)
            if behind:
                print(f"{where}: not taken {', '.join(behind)}", flush=True)
        needed = {n: x for n, x in wanted.items() if n in found or not is_new(n)}
        try:
            matched, line = _matched(init, found, needed, where, alone=len(inits) == 1)
        except UserError as error:
            objective = program.experiment.objective
            why = _is_adapted(source, objective) or _other_kinds(init, objective, theirs)
            fix = "" if why else f". --base={init.path} takes the model as it is there"
            raise UserError(f"{why}{error}{fix}") from None
        _compare(source, program.experiment.objective, matched)
        if any("encoder" in name.split("/") for name in matched) and not init.bodies:  # of a --base it is told by now
            here = pretrained.moments_of(program.experiment.objective)
            if told := pretrained.other_moments(*source.moments, here):
                print(told, flush=True)
        if twice := sorted(set(matched) & set(given)):
            others = ", ".join(str(other.path) for other in inits)
            raise UserError(f"Experiment.init: {twice[0]} is in more than one of {others}: rename it in one of them")
        given |= matched
        # Running statistics belong to the parameters that were trained with them.
        stats |= stats_for(wanted_stats, source.stats)
        lines.append(line)
        if any(name.split("/")[0] in heads for name in matched):
            labels.append((where, source.labels))
        if any(name.endswith(TABLES) for name in matched):
            if vocabulary is not None:
                vocabularies.append((where, vocabulary))
            elif (tokenizer := pretrained.tokenizer(filesystem.as_path(init.path))) is not None:
                tokenizers.append((where, tokenizer))
    missing = [name for name in wanted if name not in given and not is_new(name)]
    if len(inits) > 1 and missing and all(init.strict for init in inits):
        lacking = f"{missing[0]}{_more(missing)}"
        raise UserError(f"Experiment.init: none of its sources has {lacking}: add one that has, or set strict=False")
    missing += [_in_module(name) for name in wanted_stats if name not in stats]
    _refuse_drawn(program, missing, inits)
    if not inits:
        return program.init, fresh, "started from scratch"
    fresh["vocabularies"], fresh["tokenizers"] = vocabularies, tokenizers  # of which the data have to be
    fresh["labels"] = labels  # of which they should
    drawn = [name for name in wanted if name not in given and is_new(name)]
    lines += [f"drawn are {drawn[0]}{_more(drawn)}"] if drawn else []
    return functools.partial(program.init, given, stats), fresh, f"started from {'; '.join(lines)}"


def horizon_changed(optimizer, step, meta):
    """A line where the rate of the next step is not what the checkpoint says it was going to be; "" where it is.

    optimizer: of the run as it goes on, perhaps to another total_steps. meta: of the checkpoint of `step`.
    """
    was, rate = meta.get("learning_rate"), float(optimizer.learning_rate_at(step))
    if was in (None, rate):
        return ""
    return f"the schedule's horizon changed: the rate at step {step} was {was:g} and is {rate:g}"


PROBE = "The cat sat on the mat; 12 men saw 345 trees. Ein Fluß, 7 x 8 = 56: what's that?"


def same_ids(found, wanted, found_in, wanted_in):
    """Raises UserError unless two tokenizers give one text the same ids, as far as there are two.

    The files of a released model do not say how many sentinels the data's tokenizer was given beside them, so that
    fingerprints may differ where the ids of text are the same.
    """
    if wanted is not None and list(found.encode(PROBE)) != list(wanted.encode(PROBE)):
        raise UserError(
            f"another vocabulary: the tokenizer in {found_in} gives text other ids than that of {wanted_in}. Ids of "
            f"one mean nothing to the other: prepare the data with launch.prepare --tokenizer={found_in}"
        )


class _Source(NamedTuple):
    """What an Init gives, renamed. params, stats: {name: array}. names: {renamed: as it was}. where: what to call it.
    modules: {name as it was: module}, adapt: that they are under; {} and None where that is not known. labels: names of
    the classes that its heads tell apart. moments: by which pictures are normalised, and where that is said."""

    params: dict
    stats: dict
    names: dict
    where: str
    vocabulary: Any = None
    modules: Any = None
    adapt: Any = None
    labels: tuple = ()
    moments: tuple = ({}, None)


def _read(init, objective, base):
    """The _Source of an Init."""
    path, step = _run_of(init.path)
    about, stats, where = {}, {}, f"{init.path}"
    if peft.is_adapter(path):
        params = trees.nested(pretrained.adapter(path, objective, base))
    elif pretrained.is_pretrained(path):
        about["modules"], params = pretrained.read(path)
        about["moments"] = pretrained.moments(path, about["modules"])
    else:
        found = Checkpoints(path / "checkpoints").arrays(step, only=("params", "extra"))
        if found is None:
            raise UserError(
                f"{init.path}: no checkpoint there; give a run directory, its checkpoints/STEP, or a directory of the "
                "transformers library's save_pretrained"
            )
        step, arrays, meta = found
        params, stats = trees.nested(evaluated(arrays)), running_stats(arrays.get("extra", {}))
        averaged = ", averaged," if "ema" in arrays.get("extra", {}) else ""
        where, about = f"{path} at step {step}{averaged}", _about(path, meta)
    for pattern, _ in init.rename:
        if not any(re.search(pattern, name) for name, _ in trees.named_leaves(params)):
            raise UserError(f"Experiment.init: rename {pattern!r} matches no parameter of {where}: correct it")
    stats = {name.removesuffix(n := _in_module(name)) + _renamed(init, n): x for name, x in stats.items()}
    names = {_renamed(init, name): name for name, _ in trees.named_leaves(params)}
    params = {_renamed(init, name): x for name, x in trees.named_leaves(params)}
    return _Source(params, stats, names, where, **about)


def _run_of(path):
    """(a run directory, the step or None) of DIR or DIR/checkpoints/STEP."""
    path = filesystem.as_path(path)
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        return path.parent.parent, int(path.name)
    return path, None


def run_modules(path):
    """({name: module}, the _Source's moments) of a run, or one checkpoint in it. Raises UserError where no gin file
    described them."""
    directory, step = _run_of(path)
    checkpoints, step = open_run(directory, step)
    about = _about(directory, checkpoints.meta(step)[0])
    if "modules" not in about:
        raise UserError(f"{path} does not say what its model is: describe that in a gin file, for --init_from={path}")
    return about["modules"], about["moments"]


def _about(path, meta):
    """Of a run, what a _Source says of it; its vocabulary and labels alone where no gin file described it."""
    tokenizer = tokenizer_of(path)
    about = {"vocabulary": tokenizer and tokenizer.vocabulary, "labels": labels_of(path)}
    try:
        experiment = registry.parse_text(meta["config"])
        objective = bound(experiment, about["vocabulary"], about["labels"], tokenizer).objective
    except (KeyError, UserError):
        return about
    modules = {n: module for n, (module, _) in objective.modules().items()}
    return {**about, "modules": modules, "adapt": objective.adapt, "moments": (pretrained.moments_of(objective), path)}


def _compare(source, objective, matched):
    """Tells of settings by which modules compute something else of a source's leaves than there; raises UserError where
    the adaptation does of its own."""
    adapt, names = objective.adapt, {new: old for new, old in source.names.items() if new in matched}
    places = {(new.split("/")[0], old.split("/")[0]) for new, old in names.items()}
    own, told = objective.modules(), []
    for ours, theirs in sorted(places):
        if ours in own and theirs in (source.modules or {}):
            for field, here, there in differing(own[ours][0], source.modules[theirs]):
                if field not in NOT_TOLD and not isinstance(here, nn.Module):
                    told.append(f"{ours}.{field} is {here!r} here and {there!r} there")
    if told:
        print(f"note: {source.where} was made with other settings: {'; '.join(told)}", flush=True)
    if adapt is not None and type(source.adapt) is type(adapt):
        adapt.check_same(source.adapt, [(old, new) for new, old in names.items() if adapt.is_own(new)], source.where)


def _renamed(init, name):
    for pattern, replacement in init.rename:
        if re.search(pattern, name):
            try:
                return re.sub(pattern, replacement, name)
            except (re.error, IndexError) as error:
                raise UserError(f"Experiment.init: rename {pattern!r} to {replacement!r}: {error}") from None
    return name


def _matched(init, found, wanted, where, alone):
    """({name: array} that this source gives, what to tell of it). Raises UserError where it does not fit."""
    if init.strict:
        mine = wanted if alone else {name: wanted[name] for name in found if name in wanted}
        trees.merge_strict(trees.nested(mine), trees.nested(found), where)
        return found, f"the parameters of {where}"
    _, report = trees.merge_partial(trees.nested(wanted), trees.nested(found), where)
    for kind in ("missing", "unexpected"):
        names = getattr(report, kind)
        if names:
            print(f"{where}: {kind} {', '.join(names[:3])}{_more(names[2:])}", flush=True)
    return {name: found[name] for name in report.matched}, f"matching parameters ({report}) of {where}"


def _is_adapted(source, objective):
    """The beginning of an error where a source has leaves of an adaptation that the objective has not."""
    if source.adapt is None or not source.adapt.adds or type(source.adapt) is type(objective.adapt):
        return ""
    name = type(source.adapt).__name__
    return (
        f"{source.where} is adapted by {name}: set Experiment.adapt = @{name}() as it is there, or start, of LoRA and "
        "IA3, from the merged weights that launch.convert --format=hf writes: "
    )


def _other_kinds(init, objective, theirs):
    """The beginning of an error where a source has modules of other kinds than the objective's, or of other names
    alone (`theirs`): "PATH holds a Decoder, and NextToken's model is an Encoder: "."""
    path, own = filesystem.as_path(init.path), objective.modules()
    found = pretrained.read(path)[0] if pretrained.is_pretrained(path) and not peft.is_adapter(path) else {}
    named = lambda module: f"a{'n' * (type(module).__name__[0] in 'AEIO')} {type(module).__name__}"
    for name, module in found.items():
        if name in own and type(own[name][0]) is not type(module):
            whose = f"{type(objective).__name__}'s {name}"
            return f"{init.path} holds {named(module)}, and {whose} is {named(own[name][0])}: "
    if not own or own.keys() & set(theirs):
        return ""
    told = lambda name, module: f"{name} ({type(module).__name__})" if module is not None else name
    has = ", ".join(told(name, found.get(name)) for name in theirs)
    mine = ", ".join(told(name, module) for name, (module, _) in own.items())
    return f"{init.path} is of another kind: it holds {has}, and {type(objective).__name__} has {mine}: "


def _is_new(objective, name, bodies):
    """Whether no base run need have the parameter of this name: the adaptation adds it, or it is a new head's. bodies:
    whether all that is no body's is."""
    adapt, module = objective.adapt, name.split("/")[0]
    if module in objective.new_modules or bodies and module not in BODIES:
        return True
    return adapt is not None and (adapt.is_own(name) or module in objective.heads)


def _of_bodies(objective, found, wanted):
    """(what of a source is for an objective on its bodies, the names of modules that stay behind).

    Other modules than the objective's stay behind, and heads of other shapes: those are drawn.
    """
    modules = {name.split("/")[0] for name in wanted}
    fits = lambda name, x: name in wanted and wanted[name].shape == x.shape
    heads = {name.split("/")[0] for name, x in found.items() if not fits(name, x)} & set(objective.heads)
    kept = {n: x for n, x in found.items() if n.split("/")[0] in modules - heads}
    return kept, sorted({name.split("/")[0] for name in found if name not in kept})


def _refuse_drawn(program, missing, inits):
    """Raises UserError where a module of which nothing is trained would stay as it was drawn, wholly or in part, or the
    base of an adaptation would."""
    frozen_modules, adapt = program.state.frozen_modules, program.experiment.objective.adapt
    lost = [name for name in missing if name.split("/")[0] in frozen_modules]
    if adapt is not None and adapt.freezes and not lost:
        frozen = {name for name, _ in trees.named_leaves(program.state.frozen)}
        lost = [name for name in missing if name in frozen]
        frozen_modules = sorted({name.split("/")[0] for name in lost})
    if lost and not inits:
        raise UserError(
            f"{', '.join(frozen_modules)} is frozen, and without Experiment.init or --init_partly_from=DIR it would "
            "stay as it was drawn: give the run that it comes from"
        )
    if lost:
        raise UserError(
            f"{' and '.join(str(init.path) for init in inits)} lacks {lost[0]}{_more(lost)} of what is frozen, or has "
            "them of other shapes: build the frozen module with the settings of that run"
        )


def _more(names):
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
