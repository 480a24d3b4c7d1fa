"""Where arrays lie: first-match rules over parameter paths -> shardings on a mesh of data, fsdp, tensor and context.

A rule is (regex on 'a/b/kernel', mesh axes of the trailing dims); leading dims, stacked layers among them, get None.
Vectors that no rule names are replicated; a matrix that no rule names is an error, since on a pod it would be a copy on
every chip. Moments and averages inherit by path from the parameter that their path ends with. No parameter is cut over
`context`: it cuts the rows of a batch, and what becomes of them, along their length.

An axis with a question mark, "fsdp?", cuts what is kept and not what is computed with, and is left out where it does
not divide: for small leaves beside kernels, which are many together, as their moments are. Whoever reads one calls
`gathered` first.
"""

import math
import re

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paradigm import trees
from paradigm.errors import UserError

AXES = ("data", "fsdp", "tensor")  # of every mesh
CONTEXT = "context"  # of meshes that name it: the axis that long rows are cut over, along their length
BATCH = ("data", "fsdp")  # the axes that a batch's rows are spread over


def constrain(x, *axes, partial=False):
    """`x` with its trailing dims laid over these mesh axes; x itself where there is no mesh with data, fsdp and tensor.

    partial: each dim by itself: axes that the mesh lacks, or that do not divide the dim, are left out. So are always
    CONTEXT, since what is decoded token by token has one position, and few meshes have that axis, and BATCH: a step's
    rows divide (launch refuses a batch whose do not), those that an evaluator looks at need not.

    BATCH stands first for activations: constrain(x_BxLxD, BATCH, CONTEXT, None). A model must say so after each matrix
    product whose kernel is cut over fsdp: left to itself on a mesh of all three axes, XLA's partitioner (jaxlib 0.10.2
    and 0.12.0.1) was seen to return a wrong gradient for tanh(x @ w) with w over (fsdp, tensor), not merely a slow one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not (partial or set(AXES) <= set(mesh.axis_names)):
        return x
    spec = _trailing(axes, x.ndim)
    own = lambda size, axis: _fitting(size, axis, mesh) if partial or axis in (CONTEXT, BATCH) else axis
    spec = P(*(own(size, axis) for size, axis in zip(x.shape, spec)))
    return jax.lax.with_sharding_constraint(x, spec)


def gathered(x, axes):
    """A leaf as it is computed with: laid as its rule says, whole along the axes that are marked with "?"."""
    return constrain(x, *map(_firm, axes), partial=True)


def constrain_tokens(x):
    """x [B, L, ...], its rows spread over the batch axes and their positions over context; of [B, D] its rows."""
    inner = [None] * (x.ndim - 1)
    if x.ndim > 2:
        inner[0] = CONTEXT
    return constrain(x, BATCH, *inner)


def constrain_rows(tree):
    """Every leaf [B, ...] of the tree, its rows spread over the batch axes."""
    return jax.tree.map(lambda x: constrain(x, BATCH, *(None,) * (x.ndim - 1)), tree)


def context_ways(*lengths):
    """Into how many parts the mesh in context cuts rows of these lengths; 1 where it does not divide them all."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape.get(CONTEXT, 1)
    return 1 if any(length % ways for length in lengths) else ways


def check_context(objective, ways):
    """Raises UserError where the rows of an objective cannot be cut into so many parts along their length."""
    name, length = type(objective).__name__, objective.context_length
    if ways > 1 and length is None:
        raise UserError(
            f"mesh context:{ways} cuts rows of tokens along their length, and those of {name} are not read by a "
            "Decoder or an Encoder alone: leave context out of the mesh"
        )
    if ways > 1 and objective.adapt is not None and objective.adapt.lengthens:
        raise UserError(
            f"mesh context:{ways} cuts rows of {length} tokens along their length, and "
            f"{type(objective.adapt).__name__} puts others before them: leave context out of the mesh"
        )
    if ways > 1 and length % ways:
        raise UserError(
            f"mesh context:{ways} does not divide the length {length} of {name}: choose a length that is a multiple of "
            f"{ways}, or another context"
        )


def batch_shardings(batch_spec, mesh, length=None):
    """Rows over data and fsdp, for each entry of a batch; those of `length` tokens, [B, length], over context too.

    Raises:
        UserError: when the batch does not divide over those axes.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, spec in batch_spec.items():
        if spec.shape[0] % ways:
            raise UserError(
                f"a batch of {spec.shape[0]} does not divide over data x fsdp = "
                f"{mesh.shape['data']} x {mesh.shape['fsdp']} devices (entry {name!r}): "
                f"choose a batch size that is a multiple of {ways}"
            )
    cut = (BATCH, CONTEXT) if length is not None and mesh.shape.get(CONTEXT, 1) > 1 else (BATCH,)
    of = lambda spec: P(*cut) if len(spec.shape) > 1 and spec.shape[1] == length else P(BATCH)
    return {name: NamedSharding(mesh, of(spec)) for name, spec in batch_spec.items()}


def shardings(tree, rules, mesh, user_rules=()):
    """A NamedSharding for each leaf of an abstract tree of parameters or extra state.

    Args:
        tree: leaves with .shape.
        rules: the model family's ordered rules.
        user_rules: rules of the experiment, read first; each must match something.

    Raises:
        UserError: a matrix that no rule matches, a dim that does not divide its axes, a user's rule without a match.
    """
    for pattern, _ in user_rules:
        if not any(re.search(pattern, name) for name, _ in trees.named_leaves(tree)):
            raise UserError(f"partition rule {pattern!r} matches no parameter: correct it or leave it out")
    rules = tuple(user_rules) + tuple(rules)
    return trees.named_map(lambda name, x: NamedSharding(mesh, _spec(name, x.shape, rules, mesh)), tree)


def state_shardings(state, rules, mesh, user_rules=()):
    """Shardings of a TrainState of ShapeDtypeStructs; opt_state inherits from params by path."""
    replicated = NamedSharding(mesh, P())
    everything = shardings(state.all_params, rules, mesh, user_rules)
    named = dict(trees.named_leaves(everything))
    params, frozen = (trees.named_map(lambda name, _: named[name], tree) for tree in (state.params, state.frozen))
    by_name = {
        name: (x.shape, s.spec) for (name, x), s in zip(trees.named_leaves(state.params), jax.tree.leaves(params))
    }
    return state.replace(
        step=replicated,
        bad_steps=replicated,
        params=params,
        frozen=frozen,
        opt_state=trees.named_map(
            lambda name, x: NamedSharding(mesh, _inherited(name, x.shape, by_name)), state.opt_state
        ),
        extra=shardings(state.extra, tuple(user_rules) + tuple(rules), mesh),
    )


def _spec(name, shape, rules, mesh):
    axes = trees.first_match(rules, name)
    if axes is None:
        rank = len(shape) - trees.is_stacked(name)
        if rank >= 2:
            raise UserError(
                f"no partition rule matches {name} of shape {tuple(shape)}: add (regex, axes) for it to the rules"
            )
        return P()
    if len(axes) > len(shape):
        raise UserError(
            f"the partition rule for {name} has {len(axes)} axes {axes}, its shape {tuple(shape)} has fewer dims"
        )
    spec = P(*(_kept(size, axis, mesh) for size, axis in zip(shape, _trailing(axes, len(shape)))))
    for size, axis in zip(shape, spec):
        ways = _ways(axis, mesh)
        if size % ways:
            raise UserError(
                f"{name} of shape {tuple(shape)}: dim {size} does not divide over mesh axis {axis!r} of {ways} "
                "devices; change the mesh or the model's size"
            )
    return spec


def _fitting(size, axis, mesh):
    """Those of a dim's axes that the mesh has, or None where they do not divide it."""
    names = tuple(a for a in _names(axis) if a in mesh.shape)
    return names if names and size % _ways(names, mesh) == 0 else None


def _firm(axis):
    """A dim's axes without those that are marked with "?"."""
    return tuple(name for name in _names(axis) if not name.endswith("?")) or None


def _kept(size, axis, mesh):
    """A dim's axes with those of the marked ones that divide it beside the others."""
    kept = _firm(axis)
    for name in _names(axis):
        more = (*_names(kept), name.removesuffix("?"))
        if name.endswith("?") and size % _ways(more, mesh) == 0:
            kept = more
    return kept[0] if kept and len(kept) == 1 else kept


def _ways(axis, mesh):
    return math.prod(mesh.shape[name] for name in _names(axis))


def _names(axis):
    """A dim's axes, of none, one or several, as a tuple."""
    return (axis,) if isinstance(axis, str) else tuple(axis or ())


def _inherited(name, shape, params):
    """The spec of an optimizer's leaf: its parameter's; a factored moment's drops the axis that was reduced."""
    parts = name.split("/")
    for i in range(len(parts)):
        found = params.get("/".join(parts[i:]))
        if found is not None:
            break
    else:
        return P()
    wanted, spec = found
    if shape == wanted:
        return spec
    spec = tuple(spec) + (None,) * (len(wanted) - len(spec))
    axes = range(trees.is_stacked(name), len(wanted))
    for axis in reversed(axes) if "v_row" in parts else axes:
        if wanted[:axis] + wanted[axis + 1 :] == shape:
            return P(*spec[:axis], *spec[axis + 1 :])
    return P()


def _trailing(axes, rank):
    return P(*(None,) * (rank - len(axes)), *axes)
