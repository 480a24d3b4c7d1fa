"""What a run leaves to be read: metrics.jsonl, TensorBoard, samples/, loss.png, and the bar on the console.

metrics.jsonl has one JSON object a line, written and flushed at once. TensorBoard holds the same numbers:

    {"step": 20, "train/loss": 5.13, "train/accuracy": 0.11, ..., "speed": {"seconds_per_step": 0.21, "mfu": 0.42, ...}}
    {"step": 20, "valid/loss": 5.08, ..., "speed": {"seconds": 1.3}}

A training row merges the sums of all steps since the row before it. Whatever depends on the clock stands under "speed":
without that key a run that was interrupted and resumed has the rows of one that was not.
"""

import io
import json
import math
import pathlib
import shutil
import struct
import sys
import time

import jax

from paradigm.storage import replace

TRAIN, VALID = "train/", "valid/"


def make_writers(workdir, **settings):
    """Writers in process 0, and something with the same methods that does nothing in the others."""
    return Writers(workdir, **settings) if jax.process_index() == 0 else Silent()


class Silent:
    """Takes every call of Writers and does nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Writers:
    """All outputs of a run but its checkpoints.

    Args:
        workdir: the run directory.
        logged: the step of the last training row that counts; later ones are of steps that will be taken again, and go.
        evaluated: the same for validation rows and samples.
        step, total_steps: where the run stands, for the bar.
        unit: what is counted a second ("tokens"). title: of the picture. config: text that TensorBoard shows.
    """

    def __init__(self, workdir, *, logged=0, evaluated=0, step=0, total_steps=1, unit="examples", title="", config=""):
        def counts(at, names):
            return at <= (logged if any(name.startswith(TRAIN) for name in names) else evaluated)

        self._workdir = pathlib.Path(workdir)
        self._rows = cut_rows(self._workdir / "metrics.jsonl", counts)
        cut_samples(self._workdir / "samples", evaluated)
        self._file = open(self._workdir / "metrics.jsonl", "a", encoding="utf-8")
        self._board = TensorBoard(self._workdir / "tensorboard", counts)
        if config and self._board.fresh:  # a run that goes on has its own already
            self._board.text(0, "config", config)
        self._console, self._title = Console(step, total_steps, unit), title
        self._drawn = time.monotonic()

    def say(self, text):
        """A line on the console."""
        self._console.say(text)

    def status(self, text):
        """How far an evaluation is, on the console."""
        self._console.status(text)

    def train(self, step, metrics, speed):
        """A training row: metrics are means of the window that ends at `step`, speed what the clock says of it."""
        self._write(step, {TRAIN + name: value for name, value in metrics.items()}, speed)
        self._console.report(step, metrics, speed)

    def advance(self, step):
        """Moves the bar."""
        self._console.advance(step)

    def valid(self, step, metrics, artefacts, speed):
        """An evaluation: its row, its artefacts in samples/STEP/ and in TensorBoard, and the loss curve so far."""
        self._write(step, metrics, speed)
        self.status("")
        self.say(f"step {step} · " + " · ".join(f"{name} {_short(value)}" for name, value in metrics.items()))
        for artefact in artefacts:
            path = save_artefact(self._workdir / "samples" / f"{step:08d}", artefact)
            self._board.artefact(step, artefact)
            if artefact.kind == "text":
                lines = str(artefact.value).splitlines()
                self.say("\n".join(f"  {line}" for line in lines[:6]) + (f"\n  ... {path}" if len(lines) > 6 else ""))
            else:
                self.say(f"  {artefact.name}: {path}")
        if time.monotonic() - self._drawn > 60:  # a curve takes half a second: not at each of many short evaluations
            self._draw()

    def close(self):
        """Draws the curve and closes every file. May be called twice."""
        if not self._file.closed:
            self._console.close()
            self._board.close()
            self._file.close()
            self._draw()

    def _write(self, step, values, speed):
        values = {name: number(value) for name, value in values.items()}
        speed = {name: number(value) for name, value in speed.items()}
        row = {"step": step, **values, "speed": speed}
        self._rows.append(row)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        prefix = "speed/" if any(name.startswith(TRAIN) for name in values) else "speed/valid_"
        self._board.scalars(step, values | {prefix + name: value for name, value in speed.items()})

    def _draw(self):
        draw_loss(self._workdir / "loss.png", self._rows, self._title)
        self._drawn = time.monotonic()


def cut_rows(path, counts):
    """The rows of metrics.jsonl for which counts(step, names) holds; others, and a half-written line, are cut."""
    rows, stays = [], []
    lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line) if line.endswith("\n") else {}
        except ValueError:
            continue
        if "step" in row and counts(row["step"], row):
            rows.append(row)
            stays.append(line)
    if len(stays) < len(lines):
        replace(path, "".join(stays).encode())
    return rows


def cut_samples(directory, step):
    """Removes samples of later steps."""
    for path in directory.glob("[0-9]*"):
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)


def save_artefact(directory, artefact):
    """Writes a named text, image or table into the directory, in a form that any viewer opens; returns the path."""
    directory.mkdir(parents=True, exist_ok=True)
    extension = {"text": ".txt", "image": ".png", "table": ".csv"}[artefact.kind]
    path = directory / (artefact.name.replace("/", "_") + extension)
    if artefact.kind == "text":
        path.write_text(artefact.value + "\n", "utf-8")
    elif artefact.kind == "table":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(artefact.value)
    else:
        from matplotlib import image

        image.imsave(path, artefact.value, cmap="gray", vmin=0, vmax=255 if artefact.value.dtype == "uint8" else 1)
    return path


def draw_loss(path, rows, title=""):
    """The curves of these rows as a PNG, nothing when there are none yet.

    The first panel has the loss, training and validation, and the learning rate; then one for each measure that has a
    baseline in the rows ('valid/unigram/bits_per_byte' of 'valid/bits_per_byte', 'valid/random/knn' of 'valid/knn').
    """
    curve = lambda name: [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    losses = {name: curve(name) for name in ("train/loss", "valid/loss")}
    if not any(losses.values()):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = baselines(rows)
    figure = Figure(figsize=(8, 5 + 3 * len(measures)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1 + len(measures), 1, squeeze=False, height_ratios=[5, *(3 for _ in measures)])[:, 0]
    panels[0].set(ylabel="loss", xlabel="step")
    for (name, points), style in zip(losses.items(), ("-", "o-")):
        if points:
            panels[0].plot(*zip(*points), style, markersize=4, label=name)
    if rate := curve("train/learning_rate"):
        right = panels[0].twinx()
        right.plot(*zip(*rate), ":", color="gray")
        right.set_ylabel("learning rate (dotted)")
        right.set_ylim(bottom=0)
    for panel, (name, others) in zip(panels[1:], measures.items()):
        panel.set(ylabel=name.removeprefix("valid/"), xlabel="step")
        panel.plot(*zip(*curve(name)), "o-", markersize=4, label=name)
        for other, color in zip(others, ("C3", "C4", "C5", "C6")):
            panel.plot(*zip(*curve(other)), "--", marker=".", color=color, label=other)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    replace(path, picture.getvalue())


def baselines(rows):
    """{'valid/NAME': ['valid/KIND/NAME', ...]} of the measures in these rows that have a baseline; at most four. NAME
    may have parts, and KIND stand behind the first one."""
    names = {name for row in rows for name, value in row.items() if name.startswith(VALID) and value is not None}
    found = {}
    for name in sorted(names):
        parts = name.split("/")
        for at in range(1, len(parts) - 1):
            of = "/".join([*parts[:at], *parts[at + 1 :]])
            if parts[at] != "loss" and of in names:
                found.setdefault(of, []).append(name)
    return dict(list(found.items())[:4])


# ------------------------------------------------------------------------------------------------------- TensorBoard


class TensorBoard:
    """One event file a run, each event flushed. It is tensorboardX's format without its writer, whose queue and thread
    would lose what a killed process had not flushed, and which starts a second file when a run goes on.

    counts(step, tags): which events of the past stay. A reader would show steps taken twice as a doubled curve.
    """

    def __init__(self, directory, counts):
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._event, self._summary, self._checksum = event_pb2.Event, summary, record_writer.masked_crc32c
        directory.mkdir(exist_ok=True)
        files = sorted(directory.glob("events.out.tfevents.*"))
        for path in files:
            cut_events(path, counts, event_pb2.Event.FromString)
        self._file = open(files[-1] if files else directory / f"events.out.tfevents.{time.time():.0f}.paradigm", "ab")
        self.fresh = self._file.tell() == 0
        if self.fresh:
            self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step, values):
        """One event that holds all of a row's numbers."""
        every = self._summary.Summary()
        for name, value in values.items():
            if value is not None:
                every.value.add(tag=name, simple_value=value)
        self._add(step, every)

    def artefact(self, step, artefact):
        """A text, an image, or a table as text."""
        if artefact.kind == "image":
            value = artefact.value if artefact.value.ndim == 3 else artefact.value[..., None]
            self._add(step, self._summary.image(artefact.name, value, dataformats="HWC"))
        else:
            table = artefact.kind == "table"
            lines = [" | ".join(map(str, row)) for row in artefact.value] if table else artefact.value.splitlines()
            self.text(step, artefact.name, "\n".join(lines))

    def text(self, step, name, text):
        """A text, each line as it is."""
        verbatim = "\n".join("    " + line for line in text.splitlines())  # in markdown, which TensorBoard reads
        self._add(step, self._summary.text(name, verbatim))

    def close(self):
        self._file.close()

    def _add(self, step, summary):
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event):
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", self._checksum(part)) for part in (length, content))
        self._file.write(length + next(sums) + content + next(sums))
        self._file.flush()


def cut_events(path, counts, parse):
    """Keeps the events of a file for which counts(step, tags) holds.

    The file is a sequence of records: uint64 length, its uint32 checksum, the event, its uint32 checksum. What an
    interrupted process left at the end, less than a record, goes too.
    """
    content, stays, at = path.read_bytes(), [], 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + length + 16
        if end > len(content):
            break
        event = parse(content[at + 12 : end - 4])
        if counts(event.step, [value.tag for value in event.summary.value]):
            stays.append(content[at:end])
        at = end
    if sum(map(len, stays)) < len(content):
        replace(path, b"".join(stays))


# ----------------------------------------------------------------------------------------------------------- console


class Console:
    """A bar with loss, speed, MFU and time left on a terminal; elsewhere a line now and then."""

    SECONDS = 10.0  # between two lines where there is no terminal
    REDRAWN = 0.5  # seconds between two texts in the bar

    def __init__(self, step, total_steps, unit):
        self._total, self._unit, self._bar, self._said = total_steps, unit, None, -math.inf
        self._stated = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(initial=step, total=total_steps, unit="step", dynamic_ncols=True, smoothing=0.05)

    def say(self, text):
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def status(self, text):
        """What goes on between two steps: in the bar; or as a line when the last one is a while ago. '' is the end."""
        now = time.monotonic()
        if self._bar is None:
            if text and now - max(self._said, self._stated) >= self.SECONDS:
                self._stated = now
                self.say(f"  {text}")
        elif not text or now - self._stated >= self.REDRAWN:
            self._stated = now
            self._bar.set_postfix_str(text)

    def advance(self, step):
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step, metrics, speed):
        """The newest row: in the bar, or as a line when the last one is a while ago or this is the last step."""
        parts = [f"loss {_short(metrics.get('loss'))}"]
        if "seconds_per_step" in speed:
            parts.append(f"{_count(speed[f'{self._unit}_per_second'])} {self._unit}/s")
        if "mfu" in speed:
            parts.append(f"MFU {100 * speed['mfu']:.1f}%" + " (impossible)" * (speed["mfu"] > 1))
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            return
        now = time.monotonic()
        if now - self._said < self.SECONDS and step < self._total:
            return
        self._said = now
        if "seconds_per_step" in speed:
            parts.append(f"{_clock((self._total - step) * speed['seconds_per_step'])} left")
        self.say(f"step {step}/{self._total} · " + " · ".join(parts))

    def close(self):
        if self._bar is not None:
            self._bar.close()


def number(value):
    """A number as JSON has it: None for what is not finite."""
    if isinstance(value, int):
        return value
    return float(value) if value is not None and math.isfinite(value) else None


def _short(value):
    return "-" if value is None else f"{value:.4g}"


def _count(value):
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
