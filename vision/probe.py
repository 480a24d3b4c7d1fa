"""Probes: how much an encoder knows, measured with labels that it was not trained on. This file is the protocol.

Pictures are seen in the plain view; features are the encoder's pooled output, float32, with running statistics where
there is BatchNorm. Probes learn from the data's training pictures and are scored on its validation pictures.

knn            weighted vote of the k = 20 nearest training features by cosine, exp(similarity / 0.07) each (Wu et al.
               2018, section 3.4; the evaluation of DINO uses the same).
linear         softmax regression on features standardised by their training moments (BatchNorm without scale, He et al.
               2022, appendix A.1), SGD with Nesterov momentum 0.9, cosine to 0, no decay. The learning rate is swept,
               and chosen on a tenth of the TRAINING pictures, set apart (Grill et al. 2020, appendix C.1); the head
               that is scored was trained on all of them at that rate. The test pictures choose nothing.
linear_10pct, linear_1pct   the same with that part of the labels, as many of each class (Chen et al. 2020, section 6).
attentive      a query, attention to all patches and a classifier (paradigm/attentive.py), trained over the encoder as
               it is, as V-JEPA does (facebookresearch/jepa, configs/evals/vitl16_in1k.yaml): AdamW at 1e-3, cosine to
               0, no warmup, weight decay 0.001; or at 1e-2, which narrow encoders and few steps need, whichever is
               better on a tenth of the training pictures, as above. Of encoders with patches; on the views of
finetune       all of the network, trained by the train step of this project: AdamW, linear warmup over a twentieth,
               cosine to 0, weight decay 0.05, layers that learn less by a factor of 0.75 the deeper they lie (He et al.
               2022, table 9; a ResNet's all learn alike). Views are mild whatever the objective's are: 0.8 of the area
               or more, and its mirror. Under contrastive views a few passes over the labels ended below the linear
               probe.

Every number stands beside `random/...`: the same architecture as initialised, through the same code. A BatchNorm
encoder that was never trained has no running statistics, so it first sees 20 batches, as any would have in training.
"""

import dataclasses
import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from paradigm import progress, rng, trees
from paradigm.adapt import LinearProbe
from paradigm.attentive import Attentive
from paradigm.capabilities import ImageFeatures
from paradigm.dataset import Dataset
from paradigm.errors import UserError, choose
from paradigm.evaluator import Evaluator
from paradigm.objective import Context
from paradigm.optim import AdamW, LayerDecay
from paradigm.partition import constrain
from paradigm.probing import ATTENTIVE_RATES, balanced, knn, linear
from paradigm.probing import LEARNING_RATES as LEARNING_RATES
from paradigm.records import Subset
from paradigm.schedule import Cosine
from paradigm.step import init_state, make_train_step
from vision.data import known_labels
from vision.objectives.classify import Classify
from vision.objectives.multi_crop import MultiCrop
from vision.views import own_colours

BATCH = 250  # pictures encoded at a time
LABELS = {"linear": 1.0, "linear_10pct": 0.1, "linear_1pct": 0.01}
METHODS = ("knn", *LABELS, "attentive", "finetune")
_random = weakref.WeakKeyDictionary()  # data -> {(objective, probes): the numbers of the untrained encoder}


@dataclasses.dataclass(frozen=True)
class Probes(Evaluator):
    """Accuracies of the encoder under each method, and of an untrained one beside it.

    methods: of METHODS. train_images, test_images: how many pictures are used, spread evenly; None for all.
    epochs: passes of a probe over all labels; with fewer labels the number of steps stays. seed: of the probes.
    random: the comparison with an untrained encoder. finetune_steps, finetune_batch, finetune_rate: of `finetune`, the
    batch of `attentive` too.

    Raises UserError for an unknown method, data without labels, or labels of one class only.
    """

    methods: tuple = ("knn", "linear")
    train_images: int | None = 10000
    test_images: int | None = 2000
    epochs: int = 20
    seed: int = 0
    random: bool = True
    finetune_steps: int = 500
    finetune_batch: int = 128
    finetune_rate: float = 1e-3

    needs = ImageFeatures
    counts = ("train_images", "test_images", "epochs", "finetune_steps", "finetune_batch")

    def __post_init__(self):
        super().__post_init__()
        for method in self.methods:
            choose("probe", method, dict.fromkeys(METHODS))

    def check(self, objective, data):
        super().check(objective, data)
        own = self.part(objective).objective
        encoder, classes = own.encoder, data.records("train").classes or ()
        if isinstance(own, MultiCrop) and own.prototypes < len(classes):
            kind = type(own).__name__
            raise UserError(
                f"Probes: {kind}.prototypes={own.prototypes}, and the data have {len(classes)} classes, which fewer "
                f"prototypes cannot tell apart: set {kind}.prototypes to {len(classes)} or many more"
            )
        if "attentive" in self.methods and encoder.grid is None:
            name = type(encoder).__name__
            raise UserError(f"Probes: 'attentive' reads patches, and a {name} has none: take it from Probes.methods")
        if {"attentive", "finetune"} & set(self.methods):
            Classify(encoder=encoder, augment=own.augment, classes=2)  # raises for one that reads no pictures
            check_plain(own, "Probes", "take 'attentive' and 'finetune' from Probes.methods")
        train, test = self.records(data)
        y, y_test = _some_labels(train, "training"), _some_labels(test, "validation")
        _check_labels(y, y_test)
        if known_labels(train) is not None:
            _classes(y, y_test, train.source)

    def run(self, objective, variables, data):
        """({method: accuracy, 'random/' + method: accuracy}, [])."""
        part = self.part(objective)
        found = self.scores(part.objective, part.variables(variables), data)
        if self.random:
            known = _random.setdefault(data, {})
            if (objective, self) not in known:
                first = part.variables(untrained(objective, data, self.seed))
                with progress.within("untrained"):
                    known[objective, self] = self.scores(part.objective, first, data)
            found |= {f"random/{name}": score for name, score in known[objective, self].items()}
        return found, []

    def records(self, data):
        """(what probes learn from, what they are scored on)."""
        counts = {"train": self.train_images, "valid": self.test_images}
        return tuple(Subset.drawn(data.records(split), count, self.seed) for split, count in counts.items())

    def scores(self, objective, variables, data):
        """{method: accuracy} of the encoder in these variables."""
        train, test = self.records(data)
        x, y, _ = features(objective, variables, train)
        x_test, y_test, _ = features(objective, variables, test)
        classes = _classes(y, y_test, train.source)
        scores = {}
        for method in self.methods:
            progress.report(method)
            if method == "knn":
                scores[method] = knn(x, y, x_test, y_test, classes)
            elif method in LABELS:
                some = balanced(y, LABELS[method], classes, self.seed)
                steps = max(1, self.epochs * len(x) // 256)
                scores[method] = linear(x[some], y[some], x_test, y_test, classes, steps, self.seed)
            elif method == "attentive":
                scores[method] = self.attentive(objective, variables, train, test, classes)
            else:
                steps = self.finetune_steps
                rate = Cosine(self.finetune_rate, steps, warmup_steps=max(1, steps // 20))
                names = [name for name, _ in trees.named_leaves(variables["params"]["encoder"])]
                deep = any(map(trees.is_stacked, names))
                optimizer = AdamW(rate, b2=0.999, weight_decay=0.05, layer_decay=LayerDecay(0.75) if deep else None)
                scores[method] = self.trained(objective, variables, train, test, classes, steps, optimizer)
        return scores

    def attentive(self, objective, variables, train, test, classes):
        """Accuracy of an attentive probe at the rate that pictures set apart chose."""
        steps = max(1, self.epochs * len(train) // self.finetune_batch)

        def accuracy(rate, train, test):
            optimizer = AdamW(Cosine(rate, steps), b2=0.999, weight_decay=0.001)
            how = {"pool": Attentive(), "adapt": LinearProbe()}
            return self.trained(objective, variables, train, test, classes, steps, optimizer, **how)

        order = np.random.default_rng(self.seed).permutation(len(train))
        apart, kept = (Subset(train, np.sort(rows)) for rows in np.split(order, [max(1, len(train) // 10)]))
        best = max(ATTENTIVE_RATES, key=lambda rate: accuracy(rate, kept, apart))
        return accuracy(best, train, test)

    def trained(self, objective, variables, train, test, classes, steps, optimizer, **how):
        """Accuracy of a classifier (how: its settings) after so many steps on labels, started from these variables."""
        whole, params, extra = classifier(objective, variables, classes, self.seed, **how)
        step = jax.jit(make_train_step(whole, optimizer, seed=self.seed), donate_argnums=0)
        state = jax.jit(lambda params: init_state(whole, optimizer, self.seed, params=params))(params)
        state = state.replace(extra=extra)
        stream = Dataset(train, objective.preprocess, self.finetune_batch, self.seed)
        for i in progress.counted(range(steps), "step of training", steps):
            state, metrics = step(state, stream.batch(i))
            if i % 2:
                jax.block_until_ready(metrics)  # never more than two steps in flight
        variables = whole.variables(state.all_params, state.extra)
        logits = jax.jit(lambda v, batch: whole.logits(v, whole.view(batch)))
        right = total = 0
        for batch in _batches(test, objective.preprocess):
            mask = batch["mask"] > 0
            right += np.sum((np.argmax(logits(variables, batch), 1) == batch["label"])[mask])
            total += mask.sum()
        return float(right / total)


def _batches(source, preprocess):
    size = min(BATCH, len(source))
    dataset = Dataset(source, preprocess, size, train=False)
    for step in progress.counted(range(len(dataset)), f"{size} pictures", len(dataset)):
        yield dataset.batch(step)


@functools.lru_cache(maxsize=8)
def _encode(objective):
    def encode(variables, batch):
        pooled, _ = objective.features(variables, objective.view(batch))
        return constrain(pooled.astype(jnp.float32), None, None)  # every process has all of it

    return jax.jit(encode)


def features(objective, variables, source):
    """(float32 [N, D], labels int [N], places int64 [N]) of every picture of a source that can be read."""
    xs, ys, places = [], [], []
    for batch in _batches(source, objective.preprocess):
        real = batch["mask"] > 0
        xs.append(np.asarray(_encode(objective)(variables, batch))[real])
        ys.append(batch["label"][real])
        places.append(batch["index"][real].astype(np.int64) @ np.array([1 << 32, 1]))
    return tuple(map(np.concatenate, (xs, ys, places)))


def _some_labels(source, split, count=8):
    """int [n], the labels of a source's records where they are known, else of the first `count` that can be read, if so
    many are near.

    Raises UserError where none is: some broken records are left out when their turn comes, but not all.
    """
    labels, last = [], None
    for i in range(min(len(source), 4 * count)):
        try:
            labels.append(int(source[i].get("label", -1)))
        except UserError:
            raise
        except Exception as error:
            last = f"{source.name(i)}: {error}"
        if len(labels) == count:
            break
    if not labels:
        raise UserError(f"none of the first {i + 1} {split} pictures can be read ({last}): the data are damaged")
    known = known_labels(source)
    return np.array(labels, np.int64) if known is None else known


def _check_labels(y, y_test):
    """Raises UserError where a label is missing."""
    if (y < 0).any() or (y_test < 0).any():
        raise UserError(
            f"probes need labels, and {np.sum(y < 0)} of {len(y)} training and {np.sum(y_test < 0)} of {len(y_test)} "
            "validation pictures have none: use labelled data, or take Probes from Experiment.evaluators"
        )


def _classes(y, y_test, source):
    """How many classes there are, if there is something to tell apart."""
    _check_labels(y, y_test)
    if len(np.unique(y)) < 2:
        raise UserError(
            f"probes need two classes or more, and all {len(y)} training pictures used are of class {y[0]}: "
            "use other data, or a larger Probes.train_images"
        )
    return max(len(source.classes or ()), int(max(y.max(), y_test.max())) + 1)


# ---- encoders to compare ---------------------------------------------------------------------------------------------


def untrained(objective, data, seed=0, batches=20):
    """Variables of an objective as initialised, after `batches` batches where its encoder has BatchNorm statistics."""
    params = jax.jit(objective.init)(rng.key(seed, "untrained"))
    extra = jax.jit(objective.init_extra)(params, rng.key(seed, "untrained/extra"))

    @functools.partial(jax.jit, static_argnames="phase")
    def see(extra, batch, phase):
        ctx = Context(jnp.int32(0), seed, phase=phase)
        return objective.update_extra(extra, params, objective.loss(params, extra, batch, ctx), ctx)

    has_statistics = any({"batch_stats", "encoder"} <= set(name.split("/")) for name, _ in trees.named_leaves(extra))
    for step in range(batches if has_statistics else 0):
        extra = see(extra, data.train.batch(step), objective.phase(step))
    return objective.variables(params, extra)


def plain_encoder(objective, variables):
    """The parameters with which a bare encoder computes what an objective's does, what an adaptation adds merged in.

    Raises UserError for an adaptation that has no such form (see `Adaptation.merge`).
    """
    tree, adapt = {"encoder": variables["params"]["encoder"]}, objective.adapt
    if adapt is None or not any(adapt.is_own(name) for name, _ in trees.named_leaves(tree)):
        return tree["encoder"]
    return adapt.merge(tree)["encoder"]


def check_plain(objective, who, instead):
    """Raises UserError where there is no `plain_encoder`. who: the evaluator. instead: what may be done about it."""
    if objective.adapt is None:
        return
    try:
        jax.eval_shape(lambda key: plain_encoder(objective, {"params": objective.init(key)}), jax.random.key(0))
    except UserError as error:
        raise UserError(f"{who} reads the encoder's own parameters, and {error}: {instead}") from None


def classifier(objective, variables, classes, seed=0, **how):
    """(Classify, params, extra): an objective's encoder, as it is in these variables, under a new head.

    how: settings of Classify.
    """
    whole = Classify(
        encoder=objective.encoder,
        augment=mild(objective.views[0]),
        host_image_size=objective.host_image_size,
        classes=classes,
        **how,
    )
    params = jax.jit(whole.init)(rng.key(seed, "classifier"))
    extra = jax.jit(whole.init_extra)(params, rng.key(seed, "classifier/extra"))
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # the steps to come may overwrite it
    params["encoder"] = copy(plain_encoder(objective, variables))
    if "batch_stats" in extra:
        extra["batch_stats"]["encoder"] = copy(variables["batch_stats"]["encoder"])
    return whole, params, extra


def mild(view):
    """An Augment of the same size, pixels and mirror, but of nearly whole pictures in their own colours."""
    return own_colours(view, crop="random", scale=(0.8, 1.0), strength=(0.0,) * 4)
