"""Few pictures of each class: the cache by loops, its training by a formula, and what chooses alpha and beta."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal import few_shot
from multimodal.few_shot import ALPHA, ALPHAS, BETA, BETAS, Cache, FewShot, drawn
from multimodal.zero_shot import embed_views
from paradigm.errors import UserError
from tests.multimodal.pairs import opened, table
from tests.multimodal.test_zero_shot import COLOURS, KNOWS, KNOWS_NOTHING, Data, Oracle, unit
from tests.vision.pictures import folder
from vision.augment import no_views

DRAW = np.random.default_rng(0)
NAMES = [*COLOURS]


@dataclasses.dataclass(frozen=True)
class Towers(Oracle):
    """The Oracle, whose pictures can be looked at in other ways too."""

    views = (no_views(2, mean=(0.0,) * 3, std=(1.0,) * 3),)

    def scale(self, params):
        return jnp.float32(2.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five pictures of each colour to learn from and two to be asked of; each is called by the next colour's name."""
    root = tmp_path_factory.mktemp("few")
    lines, files = [], {}
    for k in range(28):
        name, split = NAMES[k % 4], "train" if k < 20 else "valid"
        files[f"{k}.png"] = np.full((4, 6, 3), COLOURS[name], np.uint8)
        lines.append((f"{k}.png", f"{k}", NAMES[(k + 1) % 4], split))
    folder(root, files)
    return Data(opened(table(root, ("image", "caption", "colour", "part"), *lines), label="colour", split="part"))


def points(*shape):
    return np.asarray(unit(DRAW.normal(size=(*shape, 6)).astype(np.float32)))


def cache(pictures=7, classes=3, views=2):
    return Cache(points(views, pictures), np.arange(pictures) % classes, points(classes), 2.0)


def slow_logits(own, keys, x, alpha, beta):
    found = np.zeros((len(x), len(own.words)))
    for i, row in enumerate(x):
        for c, word in enumerate(own.words):
            found[i, c] = own.scale * (row @ word)
        for key, label in zip(keys, own.y):
            found[i, label] += alpha * np.exp(-beta * (1 - row @ key))
    return found


def test_logits_by_loops_and_the_best_of_the_grid():
    own, x = cache(), points(30)
    np.testing.assert_allclose(own.keys, [unit(own.views[:, i].mean(0)) for i in range(7)], rtol=1e-5)
    found = own.logits(own.keys, x, 0.7, 3.0)
    np.testing.assert_allclose(found, slow_logits(own, own.keys, x, 0.7, 3.0), rtol=1e-5)
    y = np.argmax(slow_logits(own, own.keys, x, ALPHAS[4], BETAS[150]), 1)
    y[:3] = (y[:3] + 1) % 3  # some that no setting finds
    alpha, beta = own.searched(own.keys, x, y)
    right = lambda a, b: (np.argmax(slow_logits(own, own.keys, x, a, b), 1) == y).mean()
    assert right(alpha, beta) >= right(ALPHAS[4], BETAS[150]) == 27 / 30 > right(ALPHA, BETA)
    assert own.searched(own.keys, x[:0], y[:0]) == (ALPHA, BETA)
    assert (ALPHAS[0], BETAS[0], len(ALPHAS), len(BETAS)) == (0.1, 0.1, 20, 200) and ALPHAS[-1] < 3 and BETAS[-1] < 7


def test_a_step_of_training_is_adamws_on_the_loss():
    own = cache(views=3)
    found = own.trained(1, 0)

    def loss(keys):
        total = 0.0
        for row, label in zip(own.views[0], own.y):
            scores = [own.scale * row @ word for word in own.words]
            for key, c in zip(keys, own.y):
                scores[c] = scores[c] + ALPHA * jnp.exp(-BETA * (1 - row @ key))
            total = total + jax.nn.logsumexp(jnp.stack(scores)) - scores[label]
        return total / len(own.y)

    grad = jax.grad(loss)(own.keys)
    wanted = own.keys - 1e-3 * (grad / (jnp.abs(grad) + 1e-4) + 0.01 * own.keys)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(own.trained(20, 0) - own.keys).max() > 2 * np.abs(found - own.keys).max()


def test_shots_are_balanced_and_the_fewer_are_of_the_more():
    y = np.array([0] * 10 + [1] * 2 + [-1] * 3)
    order = drawn(y, 0)
    assert sorted(order[y == 0]) == [*range(10)] and sorted(order[y == 1]) == [0, 1] and (order[y < 0] == -1).all()
    assert (order == drawn(y, 0)).all() and (order != drawn(y, 1)).any()


def test_pictures_say_what_names_do_not(data, monkeypatch):
    """Every name is a wrong one, and three shots of each class set it right; towers without knowledge do not."""
    seen, plain = [], Cache.searched
    monkeypatch.setattr(
        Cache, "searched", lambda self, keys, x, y: seen.append(np.bincount(y)) or plain(self, keys, x, y)
    )
    numbers, _ = FewShot(shots=(1, 3), views=2).run(Towers(), KNOWS, data)
    scores = {name for name in numbers if name.startswith("few_shot/")}
    assert scores == {f"few_shot/{m}@{k}" for m in few_shot.METHODS for k in (1, 3)}
    assert all(numbers[f"few_shot/{method}@3"] == 1.0 for method in few_shot.METHODS)
    assert all(numbers[f"chance/{name}"] == 0.25 == numbers[f"random/{name}"] for name in scores)
    assert all(counts.tolist() == [2, 2, 2, 2] for counts in seen) and len(seen) == 8  # not one of the six asked of
    assert FewShot(("tip",), (3,), views=0, random=False).run(Towers(), KNOWS, data)[0]["few_shot/tip@3"] == 1.0
    blind = FewShot(("tip",), (3,), random=False).run(Towers(), KNOWS_NOTHING, data)[0]
    assert blind["few_shot/tip@3"] == 0.25


@dataclasses.dataclass(frozen=True)
class Squashing(Towers):
    """Says what it is shown."""

    def aspect(self, batch):
        return jnp.ones_like(batch["aspect"])

    def embed_images(self, variables, images):
        return images


def test_views_are_of_the_aspect_that_the_objective_reads(data):
    shown = embed_views(Squashing(), KNOWS, data.records("valid"), lambda x, aspect, keys: aspect, jax.random.key(0))
    assert shown.tolist() == [1.0] * 8  # of pictures of 6 x 4


def test_what_it_refuses(data, tmp_path):
    with pytest.raises(UserError, match="unknown FewShot.methods 'tips': did you mean 'tip'"):
        FewShot(("tips",))
    with pytest.raises(UserError, match="^FewShot.shots=.*: 1 is the least$"):
        FewShot(shots=(0,))
    folder(tmp_path, {f"{i}.png": np.full((4, 4, 3), i, np.uint8) for i in range(4)})
    lines = [(f"{i}.png", f"c{i}", "Red" if i == 3 else "", "valid" if i == 3 else "train") for i in range(4)]
    plain = Data(opened(table(tmp_path, ("image", "caption"), *(line[:2] for line in lines))))
    with pytest.raises(UserError, match="^FewShot: the data have no names of classes: set PairData.label"):
        FewShot().check(Towers(), plain)
    half = Data(opened(table(tmp_path, ("image", "caption", "kind", "part"), *lines), label="kind", split="part"))
    with pytest.raises(UserError, match="^FewShot: no picture of the train split has a label"):
        FewShot().check(Towers(), half)
