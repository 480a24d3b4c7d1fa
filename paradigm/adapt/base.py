"""What every adaptation is: a value that adds leaves beside a model's own, and says which leaves are trained.

The leaves are added by an interceptor over our Dense, Embed, Attention, MLP, Block and Stack, which
`Objective.apply` enters, so that scans stack them, and sharding, checkpoints, decoding and compilation see them. What
is not trained is frozen by the table that Experiment.freeze is (see `Adaptation.freeze`).
"""

import dataclasses
import difflib
import math
import re

import jax
import jax.numpy as jnp

from paradigm import partition, trees
from paradigm.errors import UserError
from paradigm.objective import BODIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Base. A subclass has `own` and `interceptor` when it adds leaves.

    heads: whether modules that are no body (a classifier, CLIP's projections) are trained, whole.
    train: regexes on the names of further parameters that are trained, such as 'norm/scale$'.
    """

    heads: bool = True
    train: tuple[str, ...] = ()

    own = ()  # names, the path's last components, of the leaves that it adds
    freezes = True  # whether what is not named is frozen
    partition_rules = ()  # for its leaves; "fsdp?" cuts what is kept, and its moments (paradigm/partition.py)
    is_random = False  # whether it draws from the keys of a call
    lengthens = False  # whether it puts further tokens, or keys, before those of a text
    shift = 0  # how far it moves the positions of a text
    lacks_words = False  # whether it names a text whose tokens are still to be found; see `worded`
    trains_kernels = False  # whether most kernels of a body are trained

    def __post_init__(self):
        trees.check_patterns(self.train, f"{type(self).__name__}.train")

    @property
    def adds(self):
        return bool(self.own)

    @property
    def trained(self):
        """Regexes of the base's parameters that it trains, heads aside."""
        return self.train

    def worded(self, encode):
        """The same with the tokens of the text that it names; itself where there is none. encode(text) -> ids."""
        del encode
        return self

    def interceptor(self, name):
        """What flax.linen.intercept_methods takes while the body of this name is called."""
        del name
        return lambda next_fun, args, kwargs, context: next_fun(*args, **kwargs)

    def is_own(self, name):
        """Whether the leaf of this name is one that an adaptation like this adds."""
        return bool(self.own) and bool(re.search(self._own, name))

    def settings_of(self, name):
        """{setting: value} that decides, beside its numbers, what its leaf of this name does."""
        del name
        return {}

    def check_same(self, other, names, where):
        """Raises UserError where leaves of another adaptation of this kind would do something else under this one.

        names: ((what a leaf is called there, and here), ...). where: they are from.
        """
        for there, here in names:
            for setting, theirs in other.settings_of(there).items():
                ours = self.settings_of(here).get(setting, theirs)
                if not (math.isclose(theirs, ours, rel_tol=1e-6) if isinstance(theirs, float) else theirs == ours):
                    raise UserError(
                        f"{where} has {there} with {setting}={theirs!r}, and the objective's {type(self).__name__} has "
                        f"{setting}={ours!r}: set Experiment.adapt as it is there"
                    )

    def in_use(self, name, x):
        """The leaf of this name as it is computed with, whole along the axes that cut only what is kept."""
        return partition.gathered(x, trees.first_match(self.partition_rules, name))

    @property
    def _own(self):
        return rf"(^|/)({'|'.join(self.own)})(/|$)"

    def freeze(self, heads):
        """((regex, bool), ...): all is frozen but its own leaves, those that `trained` names, and these heads."""
        if not self.freezes:
            return ()
        patterns = [*([self._own] if self.own else []), *self.trained]
        patterns += [rf"^({'|'.join(heads)})/"] if self.heads and heads else []
        return (*((pattern, False) for pattern in patterns), ("", True))

    def check(self, objective, params, heads):
        """Raises UserError where the method cannot work on these modules.

        Args:
            objective: its class's name. params: {module's name: tree}, shapes suffice, its own leaves among them.
            heads: names of the modules that it does not enter.
        """
        names = [name for name, _ in trees.named_leaves(params)]
        base = [name for name in names if not self.is_own(name)]
        for pattern in self.trained:
            self.check_pattern("train", pattern, base)
        if self.freezes and not self.trained and not self.own and not (self.heads and heads):
            raise UserError(
                f"{type(self).__name__} trains heads alone, and {objective} has none beside {', '.join(params)}: "
                f"choose another method, or name what is trained in {type(self).__name__}.train"
            )
        if self.own and not any(map(self.is_own, names)):
            self.refuse(objective, params, heads)

    def refuse(self, objective, params, heads):
        bodies = ", ".join(name for name in params if name not in heads)
        if not bodies:
            raise UserError(
                f"{type(self).__name__} adapts modules called {', '.join(BODIES)}, and {objective} has "
                f"{', '.join(params)}: give what is pre-trained one of these names, or choose another method"
            )
        raise UserError(
            f"{type(self).__name__} {self.carriers}, and {objective} has none in {bodies}: choose another method"
        )

    def check_patterns(self, objective, params, heads, kinds, **settings):
        """Raises UserError where a pattern of these settings matches no kernel of a body, or there is none to match.

        kinds: what the leaves are called that count as kernels. settings: {name: patterns}.
        """
        named = trees.named_leaves({name: tree for name, tree in params.items() if name not in heads})
        kernels = [name for name, _ in named if name.endswith(kinds) and not name.endswith("conv/kernel")]
        if not kernels:
            self.refuse(objective, params, heads)
        for setting, patterns in settings.items():
            for pattern in patterns:
                self.check_pattern(setting, pattern if isinstance(pattern, str) else pattern[0], kernels)

    carriers = ""  # what it adapts, for the error where there is none

    def check_pattern(self, setting, pattern, names):
        """Raises UserError for a pattern that matches none of these names."""
        if not any(re.search(pattern, name) for name in names):
            words = re.sub(r"[\^$()?\\]", "", pattern)
            ends = {"/".join(name.split("/")[-k:]): name for name in names for k in range(1, name.count("/") + 2)}
            near = [ends[end] for end in difflib.get_close_matches(words, list(ends), 3, 0.3)] or names[:3]
            raise UserError(
                f"{type(self).__name__}.{setting}: {pattern!r} matches no parameter; the nearest are "
                f"{', '.join(dict.fromkeys(near))}"
            )

    def new_cache(self, model, batch, length):
        """A decoder's empty cache for so many tokens, with room for what it puts before them."""
        return model.new_cache(batch, length)

    def begin(self, name, drawn, given):
        """A parameter at the start of a run, of what was drawn and what Experiment.init gives."""
        del name, drawn
        return given

    def effective(self, params, where=""):
        """The parameters {module: tree} without its leaves, those that match `where` as it makes of them; here as
        they are. `merge` where every leaf can be had so."""
        del where
        return params

    def merge(self, params):
        """Parameters of the base alone that compute the same.

        Raises:
            UserError: a method whose leaves are no change of the base's parameters.
        """
        if self.own:
            raise UserError(f"{type(self).__name__} computes what no parameters of the base can: it has no merged form")
        return params

    def split(self, params):
        """(the base's parameters, its own), nested dicts that trees.merge joins again."""
        named = trees.named_leaves(params)
        return tuple(trees.nested({n: x for n, x in named if self.is_own(n) == mine}) for mine in (False, True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Adaptation):
    """Everything is trained, as without an adaptation, but that heads need not be in Experiment.init.

    redraw_layers: so many last layers of each stack begin as drawn and not as pre-trained (Zhang et al. 2021,
        "Revisiting Few-sample BERT Fine-tuning", section 5).

    A rate that falls from layer to layer is the optimizer's: layer_decay = @LayerDecay().
    """

    redraw_layers: int = 0

    freezes = False
    trains_kernels = True

    def begin(self, name, drawn, given):
        if not self.redraw_layers or not trees.is_stacked(name):
            return given
        if self.redraw_layers > len(given):
            raise UserError(f"Full.redraw_layers={self.redraw_layers}: {name} has {len(given)} layers")
        kept = jnp.arange(len(given)) < len(given) - self.redraw_layers
        return jnp.where(kept.reshape(-1, *(1,) * (given.ndim - 1)), given, drawn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Adaptation):
    """The heads alone are trained, on features that stay as they are (Alain and Bengio 2016)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFit(Adaptation):
    """The biases and the heads are trained (Ben Zaken et al. 2022, section 2: all bias terms, of norms too).

    Raises UserError for a model whose layers have none: a bias of its output alone is a head's.
    """

    @property
    def trained(self):
        return (r"(^|/)bias$", *self.train)

    def check(self, objective, params, heads):
        bodies = {name: tree for name, tree in params.items() if name not in heads}
        if not bodies:
            self.refuse(objective, params, heads)
        paths = (name.split("/") for name, _ in trees.named_leaves(bodies))
        if not any(path[-1] == "bias" and path[1] != "head" for path in paths):
            raise UserError(
                f"BitFit trains biases, and {objective} has none in {', '.join(bodies)} but the output's: choose "
                "another method, or give the model bias=True (bert.bias, gpt.bias, t5.bias) and, where what it begins "
                "from has none, --init_partly_from for --init_from: they are 0 at first, and change nothing"
            )
        super().check(objective, params, heads)


# ---- For methods that change kernels ---------------------------------------------------------------------------------


def module_path(name, module):
    """'model/decoder/layers/attention/query' of a bound module in the body of this name."""
    return "/".join((name, *module.path))


def by_module(params):
    """{path of a module: {its leaves' own names: leaf}} of a tree."""
    found = {}
    for name, x in trees.named_leaves(params):
        path, _, leaf = name.rpartition("/")
        found.setdefault(path, {})[leaf] = x
    return found


def per_layer(path, fn):
    """fn over the arrays of one layer, mapped over those of a stack."""
    return jax.vmap(fn) if trees.is_stacked(path) else fn
