"""What training on pairs looks like: evaluators whose artefacts are pictures with their captions."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multimodal.zero_shot import at_least_one, captions_at, check_captions, embed_pictures, embed_texts
from paradigm.capabilities import PairEmbedding
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.records import Subset
from vision.preprocess import resize_to_square

GAP, LINE = 4, 15  # pixels between cells, and of a line of text
TEXT = 240  # pixels that a caption is wide
INK, PAPER, DARK, RIGHT = (20, 20, 20), (255, 255, 255), (8, 48, 107), (22, 150, 60)


class _OfPairs(Evaluator):
    """What both evaluators ask for: towers, and pairs of the split."""

    needs = PairEmbedding

    def check(self, objective, data):
        super().check(objective, data)
        check_captions(data.records(self.split))

    def towers(self, objective, variables):
        """(the objective that embeds, its variables)."""
        part = self.part(objective)
        return part.objective, part.variables(variables)


@dataclasses.dataclass(frozen=True)
class Similarity(_OfPairs):
    """The cosines of some pairs of the split: a column for each picture, a row for each caption, and the pairs' own on
    the diagonal. Shades run from the smallest to the largest. count: of pairs. seed: of the draw."""

    count: int = 8
    split: str = "valid"
    seed: int = 0

    def __post_init__(self):
        at_least_one(self, "count")

    def run(self, objective, variables, data):
        objective, variables = self.towers(objective, variables)
        source = Subset.drawn(data.records(self.split), self.count, self.seed)
        x, _, places = embed_pictures(objective, variables, source)
        captions = [captions_at(source, place)[0] for place in places]
        cosines = embed_texts(objective, variables, captions, data.tokenizer) @ x.T  # [captions, pictures]
        return {}, [Artefact("similarity", "image", similarity(_pictures(source, places), captions, cosines))]


@dataclasses.dataclass(frozen=True)
class Retrieved(_OfPairs):
    """Captions of the split, each before the pictures nearest to it; those with that very caption stand in a frame.

    queries: how many captions. nearest: how many pictures of each. pairs: how many are searched; None for all.
    """

    queries: int = 8
    nearest: int = 6
    pairs: int | None = 2000
    split: str = "valid"
    seed: int = 0

    def __post_init__(self):
        at_least_one(self, "queries", "nearest", "pairs")

    def run(self, objective, variables, data):
        objective, variables = self.towers(objective, variables)
        source = Subset.drawn(data.records(self.split), self.pairs, self.seed)
        x, _, places = embed_pictures(objective, variables, source)
        chosen = np.random.default_rng(self.seed).permutation(len(places))[: self.queries]
        asked = [captions_at(source, places[i])[0] for i in chosen]
        near = np.argsort(-embed_texts(objective, variables, asked, data.tokenizer) @ x.T, axis=1, kind="stable")
        rows = []
        for caption, order in zip(asked, near[:, : self.nearest]):
            right = [caption in captions_at(source, places[i]) for i in order]
            rows.append((caption, _pictures(source, places[order]), right))
        return {}, [Artefact("retrieved", "image", retrieved(rows))]


def similarity(pictures, captions, cosines, cell=64):
    """uint8 [height, width, 3]: pictures uint8 [h, w, 3] above, captions beside, and cosines [captions, pictures]."""
    low, high = float(np.min(cosines)), float(np.max(cosines))
    columns, rows = len(pictures), len(captions)
    sheet = Image.new("RGB", (TEXT + GAP + columns * (cell + GAP), (rows + 1) * (cell + GAP)), PAPER)
    for k, picture in enumerate(pictures):
        sheet.paste(_thumbnail(picture, cell), (TEXT + GAP + k * (cell + GAP), 0))
    draw = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        top = (i + 1) * (cell + GAP)
        sheet.paste(written(caption, TEXT, cell), (0, top))
        for k in range(columns):
            left = TEXT + GAP + k * (cell + GAP)
            shade = (float(cosines[i, k]) - low) / (high - low + 1e-9)
            colour = tuple(round(p + (d - p) * shade) for p, d in zip(PAPER, DARK))
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), colour)
            ink = PAPER if shade > 0.5 else INK
            draw.text(
                (left + cell // 2, top + cell // 2), f"{cosines[i, k]:.2f}", ink, ImageFont.load_default(13), "mm"
            )
    return np.asarray(sheet)


def retrieved(rows, cell=96):
    """uint8 [height, width, 3] of rows (caption, pictures uint8 [h, w, 3], whether each is right)."""
    frame = GAP // 2
    across = max(len(pictures) for _, pictures, _ in rows)
    sheet = Image.new("RGB", (TEXT + GAP + across * (cell + 3 * GAP), len(rows) * (cell + 3 * GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (caption, pictures, right) in enumerate(rows):
        top = i * (cell + 3 * GAP) + GAP
        sheet.paste(written(caption, TEXT, cell), (0, top))
        for k, picture in enumerate(pictures):
            left = TEXT + 2 * GAP + k * (cell + 3 * GAP)
            if right[k]:
                edge = (left - 2 * frame, top - 2 * frame, left + cell - 1 + 2 * frame, top + cell - 1 + 2 * frame)
                draw.rectangle(edge, RIGHT)
            sheet.paste(_thumbnail(picture, cell), (left, top))
    return np.asarray(sheet)


def written(text, width, height):
    """A Pillow picture of a text in lines; what does not fit ends with an ellipsis."""
    font = ImageFont.load_default(12)
    lines, most = [""], max(1, height // LINE)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1] + " ..."]
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    first = (height - LINE * len(lines)) // 2
    for k, line in enumerate(lines):
        draw.text((0, first + k * LINE), line, INK, font)
    return picture


def _pictures(source, places):
    """uint8 [h, w, C] of records of a source."""
    return [source[int(place)]["image"] for place in places]


def _thumbnail(picture, cell):
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(resize_to_square(picture, cell), (cell, cell, 3))))
