"""The picture of a comparison: curves with their spread over seeds, and a bar for each row and score."""

import io
import math
import statistics
import textwrap

from launch.results.table import COSTS, shown

BARS = 6  # scores that have a panel; the table has all
ROWS = 24  # rows that are drawn
ACROSS = 3  # panels of bars beside each other
LENGTH = 42  # of a line of a label, in characters


def draw(comparison, title=""):
    """The picture as PNG bytes: curves of the first score above, a panel of bars for each of the first scores below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = comparison.rows[:ROWS]
    colors = _colors(len(rows))
    scores = [s for s in (*comparison.scores[:BARS], *COSTS) if any(row.number(s)[0] is not None for row in rows)]
    down = -(-len(scores) // ACROSS)
    labels = [in_lines(row.label).split("\n") for row in rows]
    tall = sum(0.15 + 0.15 * len(lines) for lines in labels) + 1.2  # inches of a panel of bars
    wide = ACROSS * 3.7 + 0.075 * max(len(line) for lines in labels for line in lines)
    figure = Figure(figsize=(wide, 5 + tall * down), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title or _title(comparison), fontsize=14)
    grid = figure.add_gridspec(1 + down, ACROSS, height_ratios=[5, *[tall] * down])
    curves, legend = figure.add_subplot(grid[0, :-1]), figure.add_subplot(grid[0, -1])
    _curves(curves, legend, comparison, rows, colors)
    for i, score in enumerate(scores):
        place = 1 + i // ACROSS, i % ACROSS
        _bars(figure.add_subplot(grid[place]), score, rows, colors, labelled=i % ACROSS == 0)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _title(comparison):
    runs, rows = sum(len(row.runs) for row in comparison.rows), len(comparison.rows)
    told = f"{runs} run{'s' * (runs > 1)}"
    told += f" in {rows} rows: those of one row differ in their seed alone" if runs > rows else ""
    return told + (f" (the first {ROWS} rows)" if rows > ROWS else "")


def in_lines(label):
    """All of a label: what tells two rows apart may stand anywhere in it."""
    return "\n".join(textwrap.wrap(label, LENGTH))


def _curves(panel, legend, comparison, rows, colors):
    """Of the first score's metric; of the training loss where no row was evaluated twice."""
    metric = comparison.scores[0].metric if comparison.scores else ""
    if not any(len(run.curve(metric)) > 1 for row in rows for run in row.runs):
        metric = "train/loss"
    unit = next((score.unit for score in comparison.scores if score.metric == metric), "nats, or the objective's own")
    several = False
    for row, color in zip(rows, colors):
        steps, means, low, high = spread([run.curve(metric) for run in row.runs])
        if not steps:
            continue
        several |= len(row.runs) > 1
        marker = "o" if len(steps) < 40 else ""
        style = "-" if row.ended else "--"
        label = in_lines(row.label) + (f" (n = {len(row.runs)})" if len(row.runs) > 1 else "")
        panel.plot(steps, means, style, color=color, marker=marker, markersize=4, label=label)
        if len(row.runs) > 1:
            panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    panel.set(xlabel="step", ylabel=f"{metric}" + (f" [{unit}]" if unit else ""))
    panel.set_title(metric + (": mean over seeds, the band one sample standard deviation" if several else ""))
    panel.grid(alpha=0.3)
    if any(not row.ended for row in rows):
        panel.plot([], [], "--", color="gray", label="dashed: not ended")
    legend.axis("off")
    if panel.get_legend_handles_labels()[0]:
        legend.legend(*panel.get_legend_handles_labels(), loc="center left", fontsize=9, frameon=False)
    else:
        panel.text(0.5, 0.5, "no row yet", ha="center", va="center", transform=panel.transAxes)


def spread(curves):
    """(steps, means, means - sd, means + sd) over the steps that all curves [(step, number)] have."""
    values = [dict(curve) for curve in curves]
    steps = sorted(set(values[0]).intersection(*values[1:]))
    means = [statistics.fmean(v[step] for v in values) for step in steps]
    if len(curves) == 1:
        return steps, means, means, means
    deviations = [
        math.nan if math.isnan(mean) else statistics.stdev(v[step] for v in values) for step, mean in zip(steps, means)
    ]
    low, high = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
    return steps, means, low, high


def _bars(panel, score, rows, colors, labelled):
    """A horizontal bar for each row, the first on top, the number beside it and the deviation as a whisker."""
    numbers = [row.number(score) for row in rows]
    heights = [0.0 if mean is None or math.isnan(mean) else mean for mean, _ in numbers]
    whiskers = [deviation or 0.0 for _, deviation in numbers]
    hatches = ["" if row.ended else "//" for row in rows]
    places = range(len(rows))
    panel.barh(places, heights, color=colors, hatch=hatches, edgecolor="white", height=0.75)
    for place, height, whisker in zip(places, heights, whiskers):
        if whisker:
            panel.errorbar(height, place, xerr=whisker, color="black", capsize=3, linewidth=1)
    reach = [h + w if h >= 0 else h for h, w in zip(heights, whiskers)]
    width = max([*map(abs, heights), 1e-30])
    for place, at, (mean, deviation) in zip(places, reach, numbers):
        panel.text(max(at, 0) + 0.03 * width, place, shown(mean, deviation) or "none", va="center", fontsize=9)
    panel.set_xlim(1.1 * min([0, *heights]), 1.6 * max([0, *reach]) or 0.6 * width)
    panel.set_yticks(places, [in_lines(row.label) for row in rows] if labelled else [""] * len(rows), fontsize=9)
    panel.invert_yaxis()
    better = f", {score.better} is better" if score.better else ""
    panel.set_title(f"{score.name}{better}", fontsize=10)
    panel.set_xlabel(score.unit)
    panel.grid(alpha=0.3, axis="x")
    panel.locator_params(axis="x", nbins=5)  # more of 0.0025 run into each other
    panel.set_axisbelow(True)


def _colors(count):
    from matplotlib import colormaps

    some = colormaps["tab10" if count <= 10 else "turbo"]
    return [some(i) if count <= 10 else some(i / (count - 1)) for i in range(count)]
