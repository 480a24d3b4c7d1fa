"""Scenes that a program draws: a few objects of known shape, colour, texture and size, with labels and captions.

Scene i of a seed is a function of (seed, i) alone, so a data set of any length needs no file, and any part of it can be
drawn by any process. One object, the first, is larger than the others: its shape is what the scene is called.
"""

import dataclasses
from typing import Any

import numpy as np

from paradigm.dataset import generators, mix64
from paradigm.errors import UserError, choose

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 204, 21),
    "green": (34, 150, 62),
    "turquoise": (20, 184, 186),
    "blue": (37, 99, 235),
    "purple": (126, 34, 206),
    "pink": (244, 114, 182),
    "brown": (124, 74, 33),
}
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
GROUNDS = {  # background colours, which no object has
    "white": (248, 248, 246),
    "cream": (243, 234, 214),
    "grey": (190, 194, 200),
    "pale blue": (207, 226, 243),
    "pale green": (214, 234, 212),
    "navy": (24, 30, 62),
    "black": (22, 22, 24),
}
PATTERNS = ("plain", "shaded", "speckled", "wavy")
LABELS = ("shape", "colour", "texture", "size", "count", "ground")

_RADII = ((0.105, 0.125), (0.155, 0.18), (0.22, 0.26))  # of the circle round an object, by size; the picture is 1
_GAP = 0.015  # between two such circles
_PLACES = 64  # tried for an object before the roomiest of them is taken
_SCENE, _PAIR, _NOISE = range(1, 4)  # what a hash is for


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object. shape, colour, texture, size: words. x, y, radius: in parts of the picture's side, y downwards.

    tilt, angle: radians, of the outline and of the texture.
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float
    angle: float

    def __str__(self):
        return _noun(self, True, True)


@dataclasses.dataclass(frozen=True)
class Scene:
    """things: the largest first. ground, pattern: colour and texture of the background. noise: seed of its speckles."""

    things: tuple[Thing, ...]
    ground: str
    pattern: str
    noise: int
    caption: str

    @property
    def labels(self):
        """Of the largest object its shape, colour, texture and size, then the number of objects and the background:
        ints, places in SHAPES, COLOURS, TEXTURES, SIZES, count - 1, and in GROUNDS."""
        main = self.things[0]
        return {
            "shape": SHAPES.index(main.shape),
            "colour": list(COLOURS).index(main.colour),
            "texture": TEXTURES.index(main.texture),
            "size": SIZES.index(main.size),
            "count": len(self.things) - 1,
            "ground": list(GROUNDS).index(self.ground),
        }


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Settings of the generator.

    seed: of the whole set. size: pixels a side. scenes, valid_scenes: how many of them train and are held out.
    objects: at most so many in a scene. label: which of LABELS is a record's label.
    exclude: pairs of colour and shape, such as ('red circle', 'blue star'), that no object of the set is; scenes that
    hold none of them are the same with and without. only: pairs of which the largest object is one. A model that
    learnt from a set with `exclude` has never seen the pairs that a set with the same `only` shows.

    Raises UserError for a word that is none of the generator's, or if no pair is left.
    """

    seed: int = 0
    size: int = 64
    scenes: int = 20_000
    valid_scenes: int = 1_000
    objects: int = 4
    label: str = "shape"
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "exclude", _pairs(self.exclude, "exclude"))  # gin gives lists
        object.__setattr__(self, "only", _pairs(self.only, "only"))
        choose("Shapes.label", self.label, {name: name for name in LABELS})
        for name, least, most in (("size", 8, 4096), ("objects", 1, 6), ("scenes", 1, None), ("valid_scenes", 1, None)):
            value = getattr(self, name)
            if value < least or (most and value > most):
                limits = f"at least {least}" + (f" and at most {most}" if most else "")
                raise UserError(f"Shapes.{name}={value}: it must be {limits}")
        if not self._allowed(True) or not self._allowed(False):
            raise UserError("Shapes.exclude and Shapes.only leave no pair of colour and shape to draw: name fewer")

    @property
    def classes(self):
        """The words of the label."""
        counts = tuple(str(n + 1) for n in range(self.objects))
        words = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES, "count": counts}
        return tuple(words.get(self.label, GROUNDS))

    def record(self, i, regions=""):
        """{"image": uint8 [size, size, 3], "label": int, "labels": {name: int}, "caption": str} of scene i.

        regions: shape or colour; adds "regions", uint8 [size, size]: 0 for the background, else 1 and the place of an
        object's word in SHAPES or COLOURS.
        """
        scene = self.scene(i)
        labels = scene.labels
        image = render(scene, self.size)
        record = {"image": image, "label": labels[self.label], "labels": labels, "caption": scene.caption}
        return {**record, "regions": _regions(scene, self.size, regions)} if regions else record

    def scene(self, i):
        """Scene i."""
        [rng] = generators(self.seed, _SCENE, i)
        count = int(rng.integers(1, self.objects + 1))
        main = int(rng.integers(3)) if count == 1 else int(rng.integers(1, 3))
        things = []
        for k in range(count):
            size = main if k == 0 else int(rng.integers(main))
            radius = float(rng.uniform(*_RADII[size]))
            x, y = _place(rng, radius, things)
            colour, shape = list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
            texture = TEXTURES[max(0, int(rng.integers(-1, len(TEXTURES))))]
            tilt, angle = float(rng.uniform(-0.25, 0.25)), float(rng.uniform(0, np.pi))
            allowed = self._allowed(k == 0)
            if f"{colour} {shape}" not in allowed:  # drawn again, and nothing after it changes
                drawn = int(mix64(self.seed, _PAIR, i, k)[0] % np.uint64(len(allowed)))
                colour, shape = list(allowed)[drawn].split(" ")
            things.append(Thing(shape, colour, texture, SIZES[size], x, y, radius, tilt, angle))
        ground, pattern = list(GROUNDS)[rng.integers(len(GROUNDS))], PATTERNS[rng.integers(len(PATTERNS))]
        return Scene(tuple(things), ground, pattern, int(mix64(self.seed, _NOISE, i)[0]), _caption(rng, things, ground))

    def _allowed(self, main):
        """The pairs that an object may be, as a dict with their places."""
        key = (self.exclude, self.only if main else ())
        if key not in _ALLOWED:
            pairs = (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
            _ALLOWED[key] = dict.fromkeys(p for p in pairs if p not in key[0] and (p in key[1] or not key[1]))
        return _ALLOWED[key]


_ALLOWED: dict[Any, dict] = {}


def _pairs(pairs, setting):
    if isinstance(pairs, str):
        raise UserError(f"Shapes.{setting}={pairs!r}: give a list of pairs, as in [{pairs!r}]")
    for pair in pairs:
        colour, _, shape = str(pair).partition(" ")
        choose(f"colour in Shapes.{setting}", colour, {c: c for c in COLOURS})
        choose(f"shape in Shapes.{setting}", shape, {s: s for s in SHAPES})
    return tuple(pairs)


def _place(rng, radius, things):
    """(x, y) inside the picture and clear of the other objects; the roomiest of those tried, if none is clear."""
    tried = rng.uniform(radius + 0.02, 0.98 - radius, (_PLACES, 2))
    if not things:
        return float(tried[0, 0]), float(tried[0, 1])
    others = np.array([(t.x, t.y, t.radius) for t in things])
    away = np.hypot(*(tried[:, None] - others[:, :2]).transpose(2, 0, 1)) - others[:, 2] - radius
    room = np.minimum(away.min(1), _GAP)
    x, y = tried[np.argmax(room)]
    return float(x), float(y)


# ------------------------------------------------------------------------------------------------------------- captions


def _noun(thing, size, texture):
    words = [thing.size] * size + [thing.colour] + [thing.texture] * (texture and thing.texture != "solid")
    article = "an" if words[0] == "orange" else "a"
    return " ".join([article, *words, thing.shape])


def _relation(a, b):
    if abs(a.x - b.x) > abs(a.y - b.y):
        return "to the left of" if a.x < b.x else "to the right of"
    return "above" if a.y < b.y else "below"


def _where(thing):
    rows = ("at the top", "", "at the bottom")
    columns = ("left", "", "right")
    row, column = (int(np.searchsorted((0.38, 0.62), v)) for v in (thing.y, thing.x))
    if not rows[row]:
        return f"on the {columns[column]}" if columns[column] else "in the middle"
    return f"{rows[row]} {columns[column]}".strip()


def _caption(rng, things, ground):
    """One of several ways to say what is there; size and texture are sometimes left out, never wrong."""
    size, texture, way = rng.random(3).tolist()
    nouns = [_noun(t, size < 0.7, texture < 0.8) for t in things]
    if len(things) == 1:
        text = (nouns[0], f"{nouns[0]} {_where(things[0])}")[int(2 * way)]
    else:
        related = f"{nouns[0]} {_relation(*things[:2])} {nouns[1]}"
        listed = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        number = ("two", "three", "four", "five", "six")[len(things) - 2]
        rest = nouns[2:]
        related += f", with {' and '.join(rest)}" if rest else ""
        text = (related, related, listed, f"{number} shapes: {listed}")[int(4 * way)]
    opening, ending = rng.random(2)
    if opening < 0.2:
        text = f"a picture of {text}"
    if ending < 0.3:
        text += f" on a {ground} background"
    return text


# -------------------------------------------------------------------------------------------------------------- drawing


def render(scene, size):
    """The Scene as uint8 [size, size, 3], anti-aliased."""
    image = _background(scene, size)
    for thing in scene.things:
        _draw(image, thing, size)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _regions(scene, size, of):
    """uint8 [size, size], as `Shapes.record` has it."""
    words = {"shape": SHAPES, "colour": tuple(COLOURS)}[of]
    found = np.zeros((size, size), np.uint8)
    for thing in scene.things:
        rows, columns, _, _, distance = _inside(thing, size)
        found[rows, columns][distance < 0] = 1 + words.index(getattr(thing, of))
    return found


def _background(scene, size):
    """float32 [size, size, 3]."""
    colour = np.array(GROUNDS[scene.ground], np.float32)
    if scene.pattern == "plain":
        return np.broadcast_to(colour, (size, size, 3)).copy()
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    [rng] = generators(scene.noise)
    if scene.pattern == "speckled":
        light = rng.standard_normal((size, size), np.float32) * 7
    else:
        turn = rng.uniform(0, 2 * np.pi)
        across = (at * np.float32(np.cos(turn)))[:, None] + at * np.float32(np.sin(turn))
        middle = np.float32((np.cos(turn) + np.sin(turn)) / 2)
        light = (across - middle) * 34 if scene.pattern == "shaded" else np.sin(across * rng.uniform(28, 48)) * 9
    return colour + light[:, :, None]


def _inside(thing, size):
    """(rows, columns) of the pixels near an object, as slices; (x [w], y [h, 1]) from its middle, in radii; and the
    distance [h, w] to its outline in pixels, negative inside."""
    low_x, low_y = (max(0, int((v - thing.radius) * size) - 1) for v in (thing.x, thing.y))
    high_x, high_y = (min(size, int((v + thing.radius) * size) + 2) for v in (thing.x, thing.y))
    x = ((np.arange(low_x, high_x, dtype=np.float32) + 0.5) / size - thing.x) / thing.radius
    y = ((np.arange(low_y, high_y, dtype=np.float32) + 0.5) / size - thing.y)[:, None] / thing.radius
    cos, sin = np.float32(np.cos(thing.tilt)), np.float32(np.sin(thing.tilt))
    u, v = x * cos + y * sin, y * cos - x * sin
    distance = _DISTANCE[thing.shape](u, v) * np.float32(thing.radius * size)
    return slice(low_y, high_y), slice(low_x, high_x), x, y, distance


def _draw(image, thing, size):
    """Paints one object over float32 [size, size, 3], in place."""
    rows, columns, x, y, distance = _inside(thing, size)
    colour = np.array(COLOURS[thing.colour], np.float32)
    paint = np.broadcast_to(colour, (*distance.shape, 3))
    if thing.texture != "solid":
        light = colour + (255 - colour) * np.float32(0.72)
        paint = paint + (light - colour) * _texture(thing, x, y, np.float32(thing.radius * size))[:, :, None]
    rim = np.clip(distance + 1.5, 0, 1)[:, :, None] * np.float32(0.45)  # a darker edge, one pixel wide
    paint = paint * (1 - rim)
    cover = np.clip(0.5 - distance, 0, 1)[:, :, None]
    patch = image[rows, columns]
    patch += (paint - patch) * cover


def _texture(thing, x, y, pixels):
    """float32 [h, w], where the lighter paint goes. Its period is part of the radius, but four pixels at least."""
    period = max(0.42, 4 / pixels)
    turn = 0.4 * np.sin(2 * thing.angle) if thing.texture != "striped" else thing.angle
    cos, sin = np.float32(np.cos(turn) * 2 * np.pi / period), np.float32(np.sin(turn) * 2 * np.pi / period)
    a = np.sin(x * cos + y * sin)
    sharp = np.float32(pixels * period / 4)
    if thing.texture == "striped":
        return np.clip(0.5 + a * sharp, 0, 1)
    b = np.sin(y * cos - x * sin)
    if thing.texture == "checkered":
        return np.clip(0.5 + a * b * sharp, 0, 1)
    return np.clip((a + b - 0.75) * sharp, 0, 1)


# Signed distances to outlines, about exact near the edge: (u [h, w], v [h, w], downwards) -> [h, w], negative inside.
# Every outline lies in the unit circle.


def _circle(u, v):
    return np.hypot(u, v) - np.float32(0.92)


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.74)


def _triangle(u, v):
    side = np.abs(u) * np.float32(0.8660254) - v * np.float32(0.5)
    return np.maximum(side, v) - np.float32(0.48)


def _star(u, v):
    turn = np.abs((np.arctan2(u, -v) + np.float32(np.pi / 5)) % np.float32(2 * np.pi / 5) - np.float32(np.pi / 5))
    radius = np.hypot(u, v)
    # The straight line from a point (radius 0.98, angle 0) to the notch beside it (radius 0.44, angle 36 degrees).
    x, y = radius * np.cos(turn), radius * np.sin(turn)
    dx, dy = 0.44 * np.cos(np.pi / 5) - 0.98, 0.44 * np.sin(np.pi / 5)
    length = np.hypot(dx, dy)
    return (x - np.float32(0.98)) * np.float32(dy / length) - y * np.float32(dx / length)


def _ring(u, v):
    return np.abs(np.hypot(u, v) - np.float32(0.7)) - np.float32(0.25)


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    long, wide = np.float32(0.93), np.float32(0.32)
    return np.minimum(np.maximum(u - long, v - wide), np.maximum(u - wide, v - long))


def _diamond(u, v):
    return (np.abs(u) * np.float32(1.6) + np.abs(v) - np.float32(0.97)) * np.float32(0.53)


def _heart(u, v):
    # Two circles, and below them a tip whose sides touch them; its upper edge lies well inside the circles.
    u, v = np.abs(u), v + np.float32(0.08)
    lobe = np.hypot(u - np.float32(0.4), v + np.float32(0.3)) - np.float32(0.45)
    side = u * np.float32(0.77) + v * np.float32(0.64) - np.float32(0.566)
    upper = (u * np.float32(0.45) - v - np.float32(0.348)) * np.float32(0.91)
    return np.minimum(lobe, np.maximum(side, upper))


_DISTANCE = dict(zip(SHAPES, (_circle, _square, _triangle, _star, _ring, _cross, _diamond, _heart)))
