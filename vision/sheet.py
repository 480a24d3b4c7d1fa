"""Sheets of pictures with words: headings, captions, frames and a title, for what evaluators show."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # white pixels between two pictures
SMALLEST = 96  # small pictures are enlarged to about this many pixels a side, each pixel whole
LINE, FONT, FRAME = 15, 12, 4  # pixels: of a line of text, of its letters, and of a frame
INK, PAPER, RIGHT = (20, 20, 20), (255, 255, 255), (22, 150, 60)


def sheet(rows, headings=(), captions=(), framed=()):
    """Rows of pictures, each float [H, W, C] in [0, 1] -> uint8 [height, width, 3], with white gaps.

    All are enlarged alike, by what the first one needs; smaller ones have white around them.

    headings: a text above each column. captions: [rows][columns], a text below each picture. framed: [rows][columns],
    which have a green frame.
    """
    times = max(1, round(SMALLEST / rows[0][0].shape[0]))
    tall, wide = (times * max(picture.shape[axis] for row in rows for picture in row) for axis in (0, 1))
    lines = [np.concatenate([_line(text, wide) for text in headings], 1)] if headings else []
    for i, row in enumerate(rows):
        cells = []
        for k, picture in enumerate(row):
            picture = np.clip(np.asarray(picture, np.float32), 0, 1).repeat(times, 0).repeat(times, 1)
            picture = np.uint8(np.round(255 * np.broadcast_to(picture, (*picture.shape[:2], 3))))
            if framed and framed[i][k]:
                inside = picture[FRAME:-FRAME, FRAME:-FRAME].copy()
                picture[:] = RIGHT
                picture[FRAME:-FRAME, FRAME:-FRAME] = inside
            below, beside = tall - picture.shape[0], wide - picture.shape[1]
            around = (below // 2, below - below // 2 + GAP), (beside // 2, beside - beside // 2 + GAP), (0, 0)
            cell = np.pad(picture, around, constant_values=255)
            cells.append(np.concatenate([cell, _line(captions[i][k], wide)]) if captions else cell)
        lines.append(np.concatenate(cells, 1))
    width = max(line.shape[1] for line in lines)
    return np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in lines])


def titled(picture, title):
    """A picture uint8 [height, width, 3] or [height, width] below its title, as wide as both need."""
    picture = np.broadcast_to(picture if picture.ndim == 3 else picture[..., None], (*picture.shape[:2], 3))
    width = max(picture.shape[1], 2 * GAP + round(ImageFont.load_default(FONT).getlength(title)))
    return below(np.asarray(written(title, width, LINE + 2 * GAP)), picture)


def legend(entries, width):
    """What colours mean: uint8 [height, at least width, 3], squares with words beside them, in lines.

    entries: ((colour, three floats in [0, 1]; a text), ...).
    """
    font = ImageFont.load_default(FONT)
    cells = []
    for colour, text in entries:
        cell = Image.new("RGB", (LINE + 4 * GAP + round(font.getlength(text)), LINE), PAPER)
        draw = ImageDraw.Draw(cell)
        draw.rectangle((GAP, GAP, LINE - GAP, LINE - GAP), tuple(round(255 * float(x)) for x in colour), INK)
        draw.text((LINE + GAP, 0), text, INK, font)
        cells.append(np.asarray(cell))
    lines = [[]]
    for cell in cells:
        if lines[-1] and sum(x.shape[1] for x in lines[-1]) + cell.shape[1] > width:
            lines.append([])
        lines[-1].append(cell)
    rows = [np.concatenate(line, 1) for line in lines if line]
    width = max([width, *(row.shape[1] for row in rows)])
    return np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in rows])


def below(picture, other):
    """Two pictures uint8 [height, width, 3], one below the other, the narrower one with white beside it."""
    width = max(picture.shape[1], other.shape[1])
    pad = lambda x: np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255)
    return np.concatenate([pad(picture), pad(other)])


def written(text, width, height, ink=INK):
    """A Pillow picture of a text in lines; what does not fit ends with an ellipsis."""
    font = ImageFont.load_default(FONT)
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
        draw.text((0, first + k * LINE), line, ink, font)
    return picture


def _line(text, width):
    """uint8 [LINE, width + GAP, 3]: a text on one line."""
    return np.pad(np.asarray(written(text, width, LINE)), ((0, 0), (0, GAP), (0, 0)), constant_values=255)
