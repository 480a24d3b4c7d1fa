import colorsys
import time

import numpy as np
import pytest

from paradigm.errors import UserError
from vision.synthetic_scenes import COLOURS, GROUNDS, LABELS, SHAPES, SIZES, TEXTURES, Scene, Shapes, Thing, render

SCENES = [Shapes(seed=3).scene(i) for i in range(600)]


def thing(shape="circle", colour="red", texture="solid", size="large", x=0.5, y=0.5, radius=0.25, tilt=0.0, angle=0.4):
    return Thing(shape, colour, texture, size, x, y, radius, tilt, angle)


def drawn(*things, ground="white", pattern="plain", size=64):
    return render(Scene(things, ground, pattern, 7, ""), size).astype(int)


def test_a_scene_is_a_function_of_seed_and_number():
    shapes = Shapes(seed=3)
    backwards = [shapes.record(i) for i in (7, 0, 123_456_789_012)]
    again = [Shapes(seed=3).record(i) for i in (123_456_789_012, 0, 7)][::-1]
    for a, b in zip(backwards, again):
        assert (a["image"] == b["image"]).all() and a["caption"] == b["caption"] and a["labels"] == b["labels"]
    assert (Shapes(seed=4).record(7)["image"] != backwards[0]["image"]).any()
    assert (shapes.record(8)["image"] != backwards[0]["image"]).any()
    assert len({shapes.scene(7 + k).things for k in (0, 1, 600, 2**16, 2**32, 2**33)}) == 6
    assert Shapes(seed=3, size=32).scene(7) == shapes.scene(7), "the size of the picture changes nothing else"


def test_records():
    record = Shapes(size=48).record(5)
    assert record["image"].shape == (48, 48, 3) and record["image"].dtype == np.uint8
    assert record["label"] == record["labels"]["shape"] and set(record["labels"]) == set(LABELS)
    assert isinstance(record["caption"], str)
    for label in LABELS:
        shapes = Shapes(label=label)
        rows = [shapes.record(i) for i in range(40)]
        assert all(r["label"] == r["labels"][label] < len(shapes.classes) for r in rows)
        assert len({r["label"] for r in rows}) > 1


def test_everything_occurs_and_no_shape_is_rare():
    things = [t for s in SCENES for t in s.things]
    assert {t.colour for t in things} == set(COLOURS) and {t.texture for t in things} == set(TEXTURES)
    assert {t.size for t in things} == set(SIZES) and {s.ground for s in SCENES} == set(GROUNDS)
    counts = np.bincount([s.labels["shape"] for s in SCENES], minlength=len(SHAPES))
    assert counts.min() > 40 and counts.max() < 115
    assert set(np.bincount([len(s.things) for s in SCENES], minlength=5)[1:] > 100) == {True}
    assert len({s.caption for s in SCENES}) > 580


def test_the_first_object_is_the_largest_and_none_hides_another():
    overlap = 0
    for scene in SCENES:
        main, *others = scene.things
        assert all(SIZES.index(o.size) < SIZES.index(main.size) and o.radius < main.radius for o in others)
        for k, a in enumerate(scene.things):
            assert a.radius < min(a.x, a.y, 1 - a.x, 1 - a.y), "inside the picture"
            gaps = [np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius for b in scene.things[:k]]
            overlap += min(gaps, default=0) < -0.001
            assert min(gaps, default=0) > -0.12
    assert overlap < 30, "of 900 that might"


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_look_like_themselves(shape):
    """Area, middle and symmetry of each, and edges that are anti-aliased."""
    picture = drawn(thing(shape), size=128)
    cover = (246 - picture[:, :, 2]) / (246 - COLOURS["red"][2])
    area = {"circle": 2.66, "square": 2.19, "triangle": 1.2, "star": 1.27, "ring": 2.2, "cross": 1.97,
            "diamond": 1.18, "heart": 1.8}[shape]  # in squared radii  # fmt: skip
    assert abs(np.clip(cover, 0, 1).sum() / (0.25 * 128) ** 2 / area - 1) < 0.1
    assert (np.abs(picture[64, 64] - COLOURS["red"]).max() < 3) == (shape != "ring")
    assert np.abs(picture - picture[:, ::-1]).max() <= 1, "left is right"
    upright = np.abs(picture - picture[::-1]).max() > 50
    assert upright == (shape in ("triangle", "star", "heart"))
    rows, columns = np.nonzero(cover > 0.5)
    assert 32 <= rows.min() and rows.max() < 96 and 32 <= columns.min() and columns.max() < 96
    soft = (picture[:, :, 2] > 60) & (picture[:, :, 2] < 230)
    assert soft.sum() > 20 or shape in ("square", "cross"), "edges are soft where they do not lie along pixels"


def test_no_two_shapes_are_alike():
    masks = {s: drawn(thing(s))[:, :, 2] < 144 for s in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            assert a == b or (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() < 0.87, (a, b)


def test_textures_and_colours_are_seen():
    pictures = {t: drawn(thing("square", "blue", t)) for t in TEXTURES}
    inside = {t: p[24:40, 24:40].reshape(-1, 3) for t, p in pictures.items()}
    assert np.ptp(inside["solid"], axis=0).max() == 0
    for texture in TEXTURES[1:]:
        light = (inside[texture][:, 0] > 110).mean()
        assert (0.1 < light < 0.35) if texture == "dotted" else (0.35 < light < 0.65), texture
    hues = {}
    for colour in COLOURS:
        for texture in TEXTURES:
            mean = drawn(thing("square", colour, texture))[24:40, 24:40].mean((0, 1)) / 255
            hues.setdefault(colour, []).append(colorsys.rgb_to_hsv(*mean)[0])
    assert all(np.ptp(h) < 0.03 for h in hues.values()), "a texture does not change the hue"
    for ground, colour in GROUNDS.items():
        for pattern in ("plain", "shaded", "speckled", "wavy"):
            corner = drawn(thing(), ground=ground, pattern=pattern).reshape(-1, 3)
            assert np.abs(np.median(corner, axis=0) - colour).max() < 25
            assert (np.ptp(drawn(thing(radius=0.01), ground=ground, pattern=pattern)[:20], axis=(0, 1)).max() > 3) == (
                pattern != "plain"
            )


def test_captions_tell_the_truth():
    for scene in SCENES:
        text, _, ground = scene.caption.partition(" on a ")
        assert ground in ("", f"{scene.ground} background")
        words = text.replace(",", " ").split()
        main, *others = scene.things
        nouns = [w for w in words if w in SHAPES]
        assert nouns == [t.shape for t in scene.things], scene.caption
        assert [w for w in words if w in COLOURS] == [t.colour for t in scene.things], scene.caption
        assert all(w in {t.size for t in scene.things} for w in words if w in SIZES)
        assert all(w in {t.texture for t in scene.things} - {"solid"} for w in words if w in TEXTURES)
        for phrase, true in (
            ("to the left of", lambda a, b: a.x < b.x),
            ("to the right of", lambda a, b: a.x > b.x),
            ("above", lambda a, b: a.y < b.y),
            ("below", lambda a, b: a.y > b.y),
        ):
            if f" {phrase} " in scene.caption:
                assert true(*scene.things[:2]), scene.caption
        if "at the top" in scene.caption:
            assert main.y < 0.4 and not others
        assert "a orange" not in scene.caption and "an red" not in scene.caption
    text = " ".join(s.caption for s in SCENES)
    for phrase in ("a picture of", "shapes:", " with ", " to the left of ", " below ", "in the middle", "an orange"):
        assert phrase in text, phrase


def test_pairs_can_be_held_out():
    pairs = ("red circle", "blue star", "green ring")
    every, kept, unseen = (Shapes(seed=3, exclude=e, only=o) for e, o in (((), ()), (pairs, ()), ((), pairs)))
    changed = 0
    for i, scene in enumerate(SCENES):
        hers = {f"{t.colour} {t.shape}" for t in scene.things}
        without, shown = kept.scene(i), unseen.scene(i).things[0]
        assert not {f"{t.colour} {t.shape}" for t in without.things} & set(pairs)
        assert (without == scene) == (not hers & set(pairs)), "others are the same with and without"
        assert f"{shown.colour} {shown.shape}" in pairs
        changed += without != scene
        assert [(t.x, t.y, t.size) for t in without.things] == [(t.x, t.y, t.size) for t in scene.things]
    assert 20 < changed < 150
    assert every.scene(5) == SCENES[5]
    assert not {f"{t.colour} {t.shape}" for i in range(9) for t in unseen.scene(i).things[1:]} <= set(pairs)
    assert {f"{s.things[0].colour} {s.things[0].shape}" for s in map(unseen.scene, range(60))} == set(pairs)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"exclude": ["rad circle"]},
            r"^unknown colour in Shapes.exclude 'rad': did you mean 'red'\? choose from red,",
        ),
        ({"only": ["red sircle"]}, r"^unknown shape in Shapes.only 'sircle': did you mean 'circle'\?"),
        ({"exclude": "red circle"}, r"Shapes.exclude='red circle': give a list of pairs, as in \['red circle'\]"),
        ({"exclude": ["red ring"], "only": ["red ring"]}, r"leave no pair of colour and shape to draw: name fewer"),
        ({"label": "hue"}, r"^unknown Shapes.label 'hue'"),
        ({"size": 4}, r"Shapes.size=4: it must be at least 8 and at most 4096"),
        ({"objects": 9}, r"Shapes.objects=9: it must be at least 1 and at most 6"),
        ({"scenes": 0}, r"Shapes.scenes=0: it must be at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message) as error:
        Shapes(**settings)
    assert "\n" not in str(error.value)


def test_it_is_fast():
    shapes, best = Shapes(), 9.0
    for start in range(5):
        begin = time.perf_counter()
        for i in range(start * 40, start * 40 + 40):
            shapes.record(i)
        best = min(best, (time.perf_counter() - begin) / 40)
    assert best < 0.005, "several times what an idle core needs"
