"""What a run leaves to be read, and how it is cut when the run goes on from an earlier step."""

import json
import struct
import types

import numpy as np
import pytest

from launch.run import writers
from launch.run.writers import Writers


def artefact(name, kind, value):
    return types.SimpleNamespace(name=name, kind=kind, value=value)


ARTEFACTS = [
    artefact("infill", "text", "The <X> sat\non the mat"),
    artefact("masks", "image", np.linspace(0, 1, 5 * 7 * 3).reshape(5, 7, 3)),
    artefact("grey", "image", np.arange(35, dtype=np.uint8).reshape(5, 7)),
    artefact("shares", "table", [["class", "share"], ["cat", 0.25]]),
]


SPEED = {"elapsed": 1.0, "seconds_per_step": 2.0, "tokens_per_second": 12345.0, "mfu": 0.421}


def write(workdir, steps, **settings):
    out = Writers(workdir, step=steps[0], total_steps=100, unit="tokens", **settings)
    for step in steps:
        out.train(step, {"loss": 1.0 / step, "bad_steps": 0}, SPEED)
        if step % 20 == 0:
            out.valid(step, {"valid/loss": 2.0 / step}, ARTEFACTS, {"seconds": 1.0})
    return out


def events(workdir):
    """[(step, {tag: value})] of every event file, each record's checksums verified."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            body = content[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", content, at + 8)[0] == masked_crc32c(content[at : at + 8])
            assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked_crc32c(body)
            event = Event.FromString(body)
            values = [v for v in event.summary.value if v.HasField("simple_value")]
            found.append((event.step, {v.tag: v.simple_value for v in values}))
            at += length + 16
    return [(step, values) for step, values in found if values]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_row_is_in_the_file_when_it_was_written_and_tensorboard_has_its_numbers(tmp_path):
    out = write(tmp_path, [10, 20])
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 20]  # not closed yet
    for row, (step, values) in zip(rows(tmp_path), events(tmp_path), strict=True):
        prefix = "speed/valid_" if "valid/loss" in row else "speed/"
        flat = {prefix + name: value for name, value in row.pop("speed").items()}
        flat.update((name, value) for name, value in row.items() if name != "step")
        assert step == row["step"] and values == pytest.approx(flat)
    out.close()
    out.close()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_ran_ahead_of_the_checkpoint_is_cut_everywhere(tmp_path):
    write(tmp_path, [10, 20, 30, 40, 50]).close()
    write(tmp_path, [40], logged=30, evaluated=20).close()
    assert [(r["step"], "valid/loss" in r) for r in rows(tmp_path)] == [
        (10, False), (20, False), (20, True), (30, False), (40, False), (40, True),
    ]  # fmt: skip
    assert [(step, "valid/loss" in values) for step, values in events(tmp_path)] == [
        (r["step"], "valid/loss" in r) for r in rows(tmp_path)
    ]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_samples_of_later_steps_go(tmp_path):
    write(tmp_path, [20, 40]).close()
    Writers(tmp_path, logged=20, evaluated=20).close()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000020"]


def test_half_written_ends_are_cut(tmp_path):
    write(tmp_path, [10, 20]).close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "train/loss"')
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    whole = len(events_until(tmp_path))
    write(tmp_path, [30], logged=20, evaluated=20).close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 20, 30]
    assert len(events(tmp_path)) == whole + 1


def events_until(workdir):
    """As `events`, without the record that is cut off."""
    (path,) = (workdir / "tensorboard").iterdir()
    content, at, ends = path.read_bytes(), 0, []
    while at + 12 <= len(content):
        at += struct.unpack_from("<Q", content, at)[0] + 16
        ends.append(at)
    half = content
    path.write_bytes(content[: ends[-2]])
    found = events(workdir)
    path.write_bytes(half)
    return found


def test_numbers_that_json_lacks_become_null(tmp_path):
    out = Writers(tmp_path)
    out.train(1, {"loss": float("nan"), "accuracy": None, "bad_steps": 3}, {"elapsed": 1.0})
    out.close()
    (row,) = rows(tmp_path)
    assert (row["train/loss"], row["train/accuracy"], row["train/bad_steps"]) == (None, None, 3)


def test_artefacts_are_files_that_any_viewer_opens(tmp_path):
    write(tmp_path, [20]).close()
    directory = tmp_path / "samples" / "00000020"
    assert (directory / "infill.txt").read_text() == "The <X> sat\non the mat\n"
    assert (directory / "shares.csv").read_text().splitlines() == ["class,share", "cat,0.25"]
    from matplotlib import image

    assert image.imread(directory / "masks.png").shape == (5, 7, 4)
    grey = image.imread(directory / "grey.png")[..., 0]
    assert grey.max() == pytest.approx(34 / 255, abs=0.01)


def test_without_a_terminal_lines_are_few_and_the_last_one_comes(tmp_path, capsys):
    out = Writers(tmp_path, step=0, total_steps=5, unit="tokens")
    for step in range(1, 6):
        out.train(step, {"loss": 3.25}, SPEED)
        out.advance(step)
    out.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 1/5 · loss 3.25 · 12.3k tokens/s · MFU 42.1% · 0:00:08 left",
        "step 5/5 · loss 3.25 · 12.3k tokens/s · MFU 42.1% · 0:00:00 left",
    ]


def test_on_a_terminal_there_is_a_bar(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    out = Writers(tmp_path, step=0, total_steps=5, unit="tokens")
    out.train(1, {"loss": 3.25}, SPEED)
    out.advance(5)
    out.close()
    shown = capsys.readouterr().err
    assert "5/5" in shown and "loss 3.25, 12.3k tokens/s, MFU 42.1%" in shown


def test_a_long_evaluation_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    """Now and then a line; in the bar where there is one, and no longer than it lasts."""
    out = Writers(tmp_path, step=0, total_steps=5, unit="tokens")
    out.status("too soon")
    monkeypatch.setattr(writers.Console, "SECONDS", 0.0)
    out.status("Probes · knn")
    out.status("")
    assert capsys.readouterr().out == "  Probes · knn\n"
    out.close()
    monkeypatch.setattr(writers.Console, "REDRAWN", 0.0)
    monkeypatch.setattr(writers.sys.stderr, "isatty", lambda: True, raising=False)
    out = Writers(tmp_path, step=0, total_steps=5, unit="tokens")
    out.status("Probes · linear")
    during = capsys.readouterr()
    out.valid(5, {"valid/loss": 1.0}, [], {})
    after = capsys.readouterr()
    out.close()
    assert "Probes · linear" in during.err and "Probes" not in after.err and "0/5" in after.err


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    out = writers.make_writers(tmp_path, logged=0, evaluated=0)
    out.train(1, {"loss": 1.0}, {})
    out.say("hello")
    out.status("hello")
    out.close()
    assert not list(tmp_path.iterdir())


def test_the_picture_has_each_measure_with_its_baselines_the_rate_and_a_title(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: drawn.append(self) or save(self, *args, **more))
    rows = [{"step": n, "train/loss": 5.0 - n, "train/learning_rate": 0.1 * n} for n in (1, 2)]
    rows += [{"step": 2, "valid/loss": 3.5, "valid/loss/a": 1.0, "valid/knn": 0.8, "valid/random/knn": 0.6}]
    rows[-1] |= {
        "valid/chance/knn": 0.1,
        "valid/a": None,
        "valid/unigram/bits_per_byte": 3.0,
        "valid/bits_per_byte": 2.0,
        "valid/probe/linear": 0.7,
        "valid/probe/random/linear": 0.5,
    }
    assert writers.baselines(rows) == {
        "valid/knn": ["valid/chance/knn", "valid/random/knn"],
        "valid/bits_per_byte": ["valid/unigram/bits_per_byte"],
        "valid/probe/linear": ["valid/probe/random/linear"],
    }
    writers.draw_loss(tmp_path / "loss.png", rows, "MAE · run")
    (figure,) = drawn
    assert figure.get_suptitle() == "MAE · run"
    lines = {line.get_label(): list(line.get_ydata()) for panel in figure.axes for line in panel.get_lines()}
    assert lines["train/loss"] == [4, 3] and lines["valid/loss"] == [3.5] and [0.1, 0.2] in lines.values()
    assert lines["valid/random/knn"] == [0.6] and lines["valid/unigram/bits_per_byte"] == [3.0]
    assert "learning rate (dotted)" in [panel.get_ylabel() for panel in figure.axes]


def test_tensorboard_has_the_configuration_as_text_once(tmp_path):
    for step in (0, 0, 5):
        writers.Writers(tmp_path, step=step, logged=step, config="Experiment.seed = 7\n").close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.read_bytes().count(b"    Experiment.seed = 7") == 1


def test_the_console_names_each_picture_that_was_written(tmp_path, capsys):
    write(tmp_path, [20]).close()
    said = capsys.readouterr().out
    for name in ("masks.png", "grey.png", "shares.csv"):
        assert f": {tmp_path / 'samples' / '00000020' / name}\n" in said
