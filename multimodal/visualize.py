"""What training on pairs looks like: evaluators whose artefacts are pictures with their captions."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multimodal.zero_shot import captions_at, check_captions, embed_pictures, embed_texts
from paradigm.capabilities import PairEmbedding
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.records import Subset, spread
from vision.preprocess import resize_to_square
from vision.sheet import INK, LINE, PAPER, RIGHT, written

GAP = 4  # pixels between cells
TEXT = 240  # pixels that a caption is wide
DARK = (8, 48, 107)


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

    counts = ("count",)

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

    counts = ("queries", "nearest", "pairs")

    def run(self, objective, variables, data):
        objective, variables = self.towers(objective, variables)
        source = Subset.drawn(data.records(self.split), self.pairs, self.seed)
        x, _, places = embed_pictures(objective, variables, source)
        chosen = spread(len(places), min(self.queries, len(places)), self.seed)
        asked = [captions_at(source, places[i])[0] for i in chosen]
        cosines = embed_texts(objective, variables, asked, data.tokenizer) @ x.T
        near = np.argsort(-cosines, axis=1, kind="stable")
        rows = []
        for caption, own, order in zip(asked, cosines, near[:, : self.nearest]):
            right = [caption in captions_at(source, places[i]) for i in order]
            rows.append((caption, _pictures(source, places[order]), right, own[order]))
        return {}, [Artefact("retrieved", "image", retrieved(rows))]


def similarity(pictures, captions, cosines, cell=64):
    """uint8 [height, width, 3]: pictures uint8 [h, w, 3] above, captions beside, and cosines [captions, pictures]."""
    low, high = float(np.min(cosines)), float(np.max(cosines))
    columns, rows = len(pictures), len(captions)
    sheet = Image.new("RGB", (TEXT + GAP + columns * (cell + GAP), (rows + 1) * (cell + GAP)), PAPER)
    sheet.paste(
        written("cosine of each caption with each picture; a picture's own is on the diagonal", TEXT, cell), (0, 0)
    )
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
    """uint8 [height, width, 3] of rows (caption, pictures uint8 [h, w, 3], whether each is right, their cosines)."""
    frame, tall = GAP // 2, cell + 3 * GAP + LINE
    across = max(len(pictures) for _, pictures, _, _ in rows)
    sheet = Image.new("RGB", (TEXT + GAP + across * (cell + 3 * GAP), LINE + len(rows) * tall), PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(written("caption; its own pictures are framed", TEXT, LINE), (0, 0))
    for k in range(across):
        sheet.paste(written(f"nearest {k + 1}", cell, LINE), (TEXT + 2 * GAP + k * (cell + 3 * GAP), 0))
    for i, (caption, pictures, right, cosines) in enumerate(rows):
        top = LINE + i * tall + 2 * GAP
        sheet.paste(written(caption, TEXT, cell), (0, top))
        for k, picture in enumerate(pictures):
            left = TEXT + 2 * GAP + k * (cell + 3 * GAP)
            if right[k]:
                edge = (left - 2 * frame, top - 2 * frame, left + cell - 1 + 2 * frame, top + cell - 1 + 2 * frame)
                draw.rectangle(edge, RIGHT)
            sheet.paste(_thumbnail(picture, cell), (left, top))
            sheet.paste(written(f"{cosines[k]:.2f}", cell, LINE), (left, top + cell + GAP))
    return np.asarray(sheet)


def captioned(pictures, found, truth, cell=160, across=4, lines=6):
    """uint8 [height, width, 3]: pictures uint8 [h, w, C], each above the caption that was written of it, in black, and
    the one that people wrote, in green."""
    tall = cell + 2 * lines * LINE + 3 * GAP
    rows = -(-len(pictures) // across)
    sheet = Image.new("RGB", (across * (cell + 2 * GAP), LINE + GAP + rows * tall), PAPER)
    sheet.paste(
        written("the caption that was written, and below it, in green, the true one", sheet.width, LINE), (0, 0)
    )
    for k, (picture, *texts) in enumerate(zip(pictures, found, truth)):
        left, top = k % across * (cell + 2 * GAP), LINE + GAP + k // across * tall
        sheet.paste(_thumbnail(picture, cell), (left, top))
        for i, (text, ink) in enumerate(zip(texts, (INK, RIGHT))):
            sheet.paste(written(text, cell, lines * LINE, ink), (left, top + cell + GAP + i * lines * LINE))
    return np.asarray(sheet)


def _pictures(source, places):
    """uint8 [h, w, C] of records of a source."""
    return [source[int(place)]["image"] for place in places]


def _thumbnail(picture, cell):
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(resize_to_square(picture, cell), (cell, cell, 3))))
