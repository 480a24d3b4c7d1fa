"""Probes against loops and against data whose answer is known; what they may and may not look at."""

import functools

import jax
import numpy as np
import pytest

from paradigm import probing, progress, trees
from paradigm.adapt import BottleneckAdapter, LinearProbe, LoRA
from paradigm.attentive import Attentive
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.optim import AdamW
from paradigm.records import Subset
from paradigm.step import init_state
from tests import contract
from tests.vision import tiny
from vision import probe
from vision.augment import Augment, no_views, simclr_views
from vision.data import ImageData
from vision.objectives import DINO, IGPT, MAE, Classify, SimCLR
from vision.objectives.igpt import image_gpt
from vision.probe import Probes
from vision.rand_augment import RandAugment
from vision.resnet import resnet
from vision.vit import vit

DRAW = np.random.default_rng(0)


def blobs(rows, classes=4, width=6, spread=0.3):
    """Points around one corner for each class: (x, y)."""
    y = np.arange(rows) % classes
    return (np.eye(width)[y] * 3 + DRAW.normal(size=(rows, width)) * spread).astype(np.float32), y


@functools.cache
def digits():
    prepared = ImageData("digits", channels=1).build(progress=False)
    objective = mae()
    train = Dataset(prepared.source("train"), objective.preprocess, 16, 0)
    return tiny.Opened(prepared.source, train)


def mae():
    encoder = vit("tiny", 8, 2, d_model=16, heads=2, d_ff=32, layers=1, channels=1, pool="mean")
    decoder = {"decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}
    return MAE(encoder=encoder, augment=no_views(8), host_image_size=8, **decoder)


def test_knn_is_the_weighted_vote():
    x, y = blobs(60, spread=3.0)
    x_test, y_test = blobs(40, spread=3.0)
    unit = lambda v: v / np.linalg.norm(v)
    right = 0
    for row, label in zip(x_test, y_test):
        similar = np.array([unit(row) @ unit(other) for other in x])
        votes = np.zeros(4)
        for i in np.argsort(-similar)[:5]:
            votes[y[i]] += np.exp(similar[i] / 0.5)
        right += np.argmax(votes) == label
    assert 0.3 < right / 40 < 0.95, "the case must be neither trivial nor hopeless"
    assert probe.knn(x, y, x_test, y_test, 4, k=5, temperature=0.5) == pytest.approx(right / 40)


def test_linear_finds_what_is_there_and_no_more():
    x, y = blobs(400)
    x_test, y_test = blobs(100)
    assert probe.linear(x, y, x_test, y_test, 4, 200) == 1.0
    noise = DRAW.integers(0, 4, 400)
    assert probe.linear(x[:, :2] * 0 + DRAW.normal(size=(400, 2)), noise, x_test[:, :2], y_test, 4, 200) < 0.6


def test_test_pictures_are_standardised_as_the_training_pictures_are():
    """Pictures of one class alone have that class in their mean: by their own moments they would lose it."""
    x, y = blobs(400)
    for label in range(4):
        one = blobs(400)[0][y == label]
        assert probe.linear(x, y, one, np.full(len(one), label), 4, 200, learning_rates=(0.1,)) == 1.0


def test_the_learning_rate_is_chosen_without_the_test_set(monkeypatch):
    """Of a hopeless and a good rate the good one is taken, whatever the test labels say."""
    x, y = blobs(400)
    x_test, y_test = blobs(100)
    trained = []
    plain = probing._regressions
    monkeypatch.setattr(probing, "_regressions", lambda *a: trained.append(a[-1]) or plain(*a))
    assert probe.linear(x, y, x_test, y_test, 4, 200, learning_rates=(0.0, 0.1)) == 1.0
    probe.linear(x, y, x_test, (y_test + 1) % 4, 4, 200, learning_rates=(0.0, 0.1))
    assert trained == [(0.0, 0.1), (0.1,)] * 2


def test_rows_apart_are_not_trained_on(monkeypatch):
    x, y = blobs(50)
    sizes = []
    plain = probing._regressions
    monkeypatch.setattr(probing, "_regressions", lambda rows, *a: sizes.append(len(rows)) or plain(rows, *a))
    probe.linear(x, y, x, y, 4, 5)
    assert sizes == [45, 50]  # all of them once the rate is chosen


def test_balanced_labels():
    y = np.array([0] * 500 + [1] * 300 + [2] * 200)
    some = probe.balanced(y, 0.03, 3)
    assert np.bincount(y[some]).tolist() == [10, 10, 10] and len(set(some)) == 30
    assert (some == probe.balanced(y, 0.03, 3)).all() and (some != probe.balanced(y, 0.03, 3, seed=1)).any()
    assert np.bincount(y[probe.balanced(y, 1e-9, 3)]).tolist() == [1, 1, 1]
    assert len(probe.balanced(y, 1.0, 3)) == 1000


@pytest.mark.slow
def test_every_method_beside_an_untrained_encoder_measured_once(monkeypatch):
    objective, data = mae(), digits()
    probes = Probes(probe.METHODS, 300, 100, epochs=2, finetune_steps=3, finetune_batch=16)
    variables = {"params": tiny.params(objective)}
    calls = []
    plain = probe.untrained
    monkeypatch.setattr(probe, "untrained", lambda *a: calls.append(1) or plain(*a))
    for _ in range(2):
        scores, shown = probes.run(objective, variables, data)
    assert calls == [1] and shown == []
    assert set(scores) == {*probe.METHODS, *(f"random/{m}" for m in probe.METHODS)}
    assert all(0.05 < score <= 1 for score in scores.values())
    assert scores["linear"] > scores["linear_1pct"]


def test_probes_say_how_far_they_are():
    objective, data = mae(), digits()
    heard = []
    with progress.heard_by(heard.append):
        Probes(("knn",), 300, 100).run(objective, {"params": tiny.params(objective)}, data)
    once = ["250 pictures 1 of 2", "250 pictures 2 of 2", "100 pictures 1 of 1", "knn"]
    assert heard == [*once, *(f"untrained · {text}" for text in once)]


def test_finetuning_starts_from_the_encoder_and_learns():
    objective, data = mae(), digits()
    variables = {"params": tiny.params(objective)}
    whole, params, _ = probe.classifier(objective, variables, 10)
    contract.assert_trees_equal(params["encoder"], variables["params"]["encoder"])
    few, many = (
        Probes(("finetune",), None, 100, random=False, finetune_steps=steps, finetune_batch=64, finetune_rate=1e-2)
        for steps in (1, 200)
    )
    accuracies = [probes.run(objective, variables, data)[0]["finetune"] for probes in (few, many)]
    assert accuracies[1] > accuracies[0] + 0.2
    contract.assert_trees_equal(params["encoder"], variables["params"]["encoder"])  # nothing was overwritten


def test_finetuning_starts_from_what_an_adapted_encoder_computes():
    objective = mae().adapted(LoRA(rank=2))
    random = lambda name, x: jax.random.normal(jax.random.key(2), x.shape) if name.endswith("lora_b") else x
    variables = {"params": trees.named_map(random, tiny.params(objective))}
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    whole, params, _ = probe.classifier(objective, variables, 10)
    found = whole.features({"params": params}, images)[0]
    np.testing.assert_allclose(found, objective.features(variables, images)[0], atol=1e-5)


@pytest.mark.parametrize(
    "objective, message",
    [
        (lambda: mae().adapted(BottleneckAdapter()), "no merged form: take 'attentive' and 'finetune' from"),
        (lambda: IGPT(encoder=image_gpt("tiny", image_size=8), augment=no_views()), "an ImageGPT reads ids of them"),
    ],
)
def test_what_no_classifier_can_start_from(objective, message):
    """Told before the first step, and not at the first evaluation."""
    with pytest.raises(UserError, match=message):
        Probes(methods=("finetune",)).check(objective(), digits())


def test_an_attentive_probe_learns_over_an_encoder_that_stays(monkeypatch):
    objective, data = mae(), digits()
    variables = {"params": tiny.params(objective)}
    how = {"pool": Attentive(), "adapt": LinearProbe()}
    whole, params, _ = probe.classifier(objective, variables, 10, **how)
    state = init_state(whole, AdamW(1e-3), 0, params=params)
    assert {*state.params} == {"pool", "classifier"} and {*state.frozen} == {"encoder"}
    asked, plain = [], Probes.trained
    monkeypatch.setattr(Probes, "trained", lambda *args, **how: asked.append(args) or plain(*args, **how))
    probes = Probes(("attentive",), None, 100, random=False, epochs=8, finetune_batch=32)
    assert probes.run(objective, variables, data)[0]["attentive"] > 0.35  # chance is 0.1
    one, two, last = asked  # (probes, objective, variables, train, test, classes, steps, optimizer)
    apart = {*one[4].positions}
    assert len(apart) == len(last[3]) // 10 and not apart & {*one[3].positions}
    assert [len(x[3]) + len(x[4]) for x in (one, two)] == [len(last[3])] * 2 and last[4].source is not last[3].source
    assert (one[-1].learning_rate.peak, two[-1].learning_rate.peak) == (1e-3, 1e-2)
    contract.assert_trees_equal(params["encoder"], variables["params"]["encoder"])
    convolution = Classify(encoder=resnet("tiny", channels=1), augment=no_views(8), host_image_size=8, classes=10)
    with pytest.raises(UserError, match="Probes: 'attentive' reads patches, and a ResNet has none: take it from"):
        Probes(("attentive",)).check(convolution, data)


def test_finetuning_has_mild_views_in_the_objectives_own_pixels():
    """Crops of a fifteenth, other hues and blur are for pre-training: labels are learnt from nearly whole pictures."""
    pixels = {"mean": (0.3,), "std": (0.2,), "flip": 0.0, "filter": "bicubic"}
    encoder = mae().encoder
    objective = SimCLR(encoder=encoder, augment=simclr_views(8, rand=RandAugment(), **pixels))
    [view] = probe.classifier(objective, {"params": tiny.params(objective)}, 10)[0].views
    assert view == Augment(8, scale=(0.8, 1.0), centre=1.0, **pixels)


def test_finetuning_moves_deep_layers_less(monkeypatch):
    """By 0.75 for each layer: Adam's steps by like gradients are of one size everywhere but for that."""
    objective, data, seen = mae(), digits(), []
    variables = {"params": tiny.params(objective)}
    whole = Classify.variables
    monkeypatch.setattr(Classify, "variables", lambda self, *a: seen.append(a[0]) or whole(self, *a))
    # Two steps on the same pictures; the first has the rate that the warm-up begins with, which is zero.
    Probes(("finetune",), 100, 100, random=False, finetune_steps=2, finetune_batch=100).run(objective, variables, data)
    moved = lambda new, old: float(np.median(np.abs(np.asarray(new) - np.asarray(old))))
    head = moved(seen[-1]["classifier"]["output"]["bias"], 0.0)
    embed = moved(seen[-1]["encoder"]["embed"]["bias"], variables["params"]["encoder"]["embed"]["bias"])
    assert head > 1e-5 and embed == pytest.approx(head * 0.75**2, rel=0.2)


def test_finetuning_a_resnet_which_has_no_stack_of_layers(monkeypatch):
    objective = Classify(encoder=resnet("tiny", channels=1), augment=no_views(8), host_image_size=8, classes=10)
    variables = {"params": jax.eval_shape(objective.init, jax.random.key(0))}
    monkeypatch.setattr(probe, "features", lambda *_: (np.zeros((10, 2)), np.arange(10), np.arange(10)))
    monkeypatch.setattr(Probes, "trained", lambda *args: len(args[-1].leaves(variables["params"])))
    found, _ = Probes(("finetune",), random=False).run(objective, variables, digits())
    assert found["finetune"] == len(jax.tree.leaves(variables["params"]))


def test_encoders_to_compare_are_made_on_any_mesh():
    """A module's example input is one picture, which eight devices cannot share."""
    objective = mae()
    mesh = jax.make_mesh((1, 8, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        variables = probe.untrained(objective, digits())
        probe.classifier(objective, variables, 10)


def test_an_untrained_batchnorm_has_seen_pictures():
    objective = Classify(encoder=resnet("tiny", channels=1), augment=no_views(8), host_image_size=8, classes=10)
    fresh = jax.jit(objective.init_extra)(None, jax.random.key(0))
    variables = probe.untrained(objective, digits(), batches=3)
    moved = [
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(*map(jax.tree.leaves, (fresh["batch_stats"], variables["batch_stats"])))
    ]
    assert all(moved)
    assert jax.tree.structure(fresh["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


class Labelled:
    """Pictures with these labels."""

    fingerprint = "labelled"

    def __init__(self, labels, classes=None):
        self.labels, self.classes = labels, classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": np.full((8, 8, 1), 5 * i, np.uint8), "label": self.labels[i]}


def test_labels_that_no_probe_can_use():
    objective = mae()
    variables = {"params": tiny.params(objective)}
    data = lambda labels: tiny.Opened(lambda split: Labelled(labels))
    for ask in (lambda *a: Probes(random=False).run(*a), lambda one, _, three: Probes().check(one, three)):
        with pytest.raises(UserError, match="two classes or more, and all 3 training pictures used are of class 4"):
            ask(objective, variables, data([4, 4, 4]))
    with pytest.raises(UserError, match="need labels, and 1 of 3 training and 1 of 3 validation pictures have"):
        Probes(random=False).run(objective, variables, data([4, -1, 3]))
    Probes().check(objective, data([4, 3, 3]))
    with pytest.raises(UserError, match="need labels, and 1 of 3 training"):  # before the first step
        Probes().check(objective, data([4, -1, 3]))
    with pytest.raises(UserError, match="need labels, and 1 of 41 training"):  # one that lies far behind, too
        Probes().check(objective, data([*[4, 3] * 20, -1]))
    broken = Labelled([None] * 5)
    with pytest.raises(UserError, match=r"^none of the first 5 validation pictures can be read \(record 4: .*damaged$"):
        Probes().check(objective, tiny.Opened(lambda split: broken if split == "valid" else Labelled([1, 2])))
    with pytest.raises(UserError, match="unknown probe 'knm': did you mean 'knn'"):
        Probes(("knm",))


def test_fewer_prototypes_than_classes_are_refused():
    augment = ((Augment(8), 2), (Augment(4), 2))
    objective = lambda n: DINO(encoder=mae().encoder, augment=augment, host_image_size=8, prototypes=n)
    data = tiny.Opened(lambda split: Labelled([0, 1, 2], ("a", "b", "c")))
    Probes().check(objective(3), data)
    with pytest.raises(
        UserError, match="Probes: DINO.prototypes=2, and the data have 3 classes, which fewer prototypes"
    ):
        Probes().check(objective(2), data)


def test_a_subset_is_drawn_once():
    source = Labelled(list(range(50)))
    subset = Subset.drawn(source, 10, 0)
    labels = [subset[i]["label"] for i in range(len(subset))]
    assert len(set(labels)) == 10 and labels == sorted(labels) != list(range(10))
    assert Subset.drawn(source, 10, 1).fingerprint != subset.fingerprint
    assert subset.name(3) == f"record {labels[3]}" and len(Subset.drawn(source, None, 0)) == 50
