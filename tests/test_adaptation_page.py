"""The comparison of adaptations: its records, its tables, and its command at a toy's size."""

import json
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import pytest

from benchmarks import adaptation_data, adaptation_page, compare
from benchmarks.adaptation_cells import CELLS, ENCODER, INTENTS, LAND, METHODS, PICTURES, TUNED
from launch.results import runs

REPO = pathlib.Path(__file__).parent.parent


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_parallel_text_is_held_out_by_its_first_side(tmp_path):
    rows = ["en\tsv\tcredit"] + [f"sentence {i}\tmening {i} {k}\tx" for i in range(1100) for k in range(1 + i % 2)]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    adaptation_data.tatoeba(tmp_path / "pairs.tsv", tmp_path)
    train, valid, test = (lines(tmp_path / name) for name in (
        "valid/tatoeba/train.jsonl", "valid/tatoeba/valid.jsonl", "test/tatoeba/valid.jsonl"))  # fmt: skip
    sides = [{row["en"] for row in split} for split in (train, valid, test)]
    assert [len(side) for side in sides] == [100, 500, 500] and not sides[0] & sides[1] | sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert all(row["sv"] == row["all"][0] and len(row["all"]) == 1 + int(row["en"].split()[1]) % 2 for row in test)


def test_records_of_requests_and_summaries(tmp_path):
    rows = [{"intent": "AddToPlaylist" if i % 2 else "BookARoom", "text": str(i)} for i in range(20)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    adaptation_data.snips(tmp_path, tmp_path)
    train, valid = (lines(tmp_path / "valid" / "snips" / f"{name}.jsonl") for name in ("train", "valid"))
    assert [row["text"] for row in valid] == ["0", "10"] and len(train) == 18
    classes, words = adaptation_data.choices(tmp_path / "test" / "snips" / "train.jsonl")
    assert (classes, words) == (("AddToPlaylist", "BookARoom"), ("add to playlist", "book a room"))
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for split in ("train", "dev", "test"):
            archive.writestr(f"{split}.jsonl", json.dumps({"source": ["One.", " Two.\n"], "target": ["A", "B"]}))
    adaptation_data.scitldr(tmp_path / "s.zip", tmp_path)
    assert lines(tmp_path / "test" / "scitldr" / "valid.jsonl") == [
        {"abstract": "One. Two.", "summary": "A", "all": ["A", "B"]}
    ]


def test_what_a_page_has_of_other_runs_stays(tmp_path):
    page = lambda *rows: ["| run | knn | tuned |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    old = ["# Page", "", "old words", "", "## A", "", *page(("mae", "1", "5"), ("dino", "2", ""), ("beit", "3", "4")),
           "## B", "", "of another machine", "", "## C", "", *page(("x", "1", "2"))]  # fmt: skip
    new = ["# Page", "", "new words", "", "## A", "", *page(("mae", "9", ""), ("beit", "8", "7"), ("vq", "6", "")),
           "## C", "", "| run | other |", "|---|---|", "| y | 3 |", ""]  # fmt: skip
    (tmp_path / "page.md").write_text("\n".join(old) + "\n## Notes\n\nby hand\n")
    compare.save(tmp_path / "page.md", "\n".join(new))
    rows = page(("mae", "9", "5"), ("dino", "2", ""), ("beit", "8", "7"), ("vq", "6", ""))
    wanted = [*new[:6], *rows, *old[12:16], *new[12:]]
    assert (tmp_path / "page.md").read_text() == "\n".join(wanted) + "\n## Notes\n\nby hand\n"
    compare.save(tmp_path / "page.md", "\n".join(new))  # and once more changes nothing
    assert (tmp_path / "page.md").read_text() == "\n".join(wanted) + "\n## Notes\n\nby hand\n"


def test_a_table_stays_of_which_no_run_is_here(tmp_path):
    """A section's later table, which a page is made without as long as none of its runs has been made."""
    table = lambda measure, *rows: [f"|  | {measure} |", "|---|---|", *(f"| {name} | {x} |" for name, x in rows), ""]
    old = [
        "## A",
        "",
        *table("knn", ("mae", 1)),
        *table("nats", ("coca", 2), ("cappa", 3)),
        *table("cider", ("vlp", 4)),
    ]
    path, save = tmp_path / "page.md", lambda *lines: compare.save(tmp_path / "page.md", "\n".join(lines))
    path.write_text("\n".join(old))
    save("## A", "", *table("knn", ("mae", 9)))
    assert path.read_text() == "\n".join(["## A", "", *table("knn", ("mae", 9)), *old[6:]])
    save("## A", "", *table("knn", ("mae", 9)), *table("nats", ("coca", 8)))
    assert path.read_text() == "\n".join(
        ["## A", "", *table("knn", ("mae", 9)), *table("nats", ("coca", 8), ("cappa", 3)), *old[11:]]
    )


def test_each_part_has_its_section_and_cells_that_are_empty_stay_so(tmp_path):
    assert [part for part, *_ in adaptation_page.SECTIONS] == list(CELLS)
    base = lambda settings, **row: runs.Run(
        tmp_path, settings, [{"step": 100, **row}], {"all": 2_000_000, "trained": 1}
    )
    text = base({"Experiment.batch_size": "64", "TextData.window": "128"}, **{"valid/bits_per_byte": 1.5})
    pictures = base({"Experiment.batch_size": "128"}, **{"valid/loss": 0.25})
    assert adaptation_page.read(text, ENCODER) == "0.8 M tokens"
    assert adaptation_page.read(pictures, PICTURES[0]) == "13 k pictures"

    done = runs.Run(tmp_path, {}, [{"step": 3, "valid/accuracy": 0.5, "speed": {"seconds_per_step": 0.02}}], {})
    method = METHODS[1]
    found = {(INTENTS, ENCODER, method, TUNED, seed): done for seed in (0, 1)}
    rates = {(m, ENCODER): 0.01 for m in METHODS}
    (tmp_path / "config.gin").write_text("Experiment.batch_size = 8\nTextData.window = 16\n")
    work = types.SimpleNamespace(base=lambda model: tmp_path)
    page = adaptation_page.report(work, rates, found, {method: 0.25})
    assert "| full fine-tuning |  | 50.0 ± 0.0 |  |  |  | 20 ms | +25.0 % | 0.01 |" in page
    assert "## Three architectures" in page and "## Land from above" not in page and "2 seeds" in page
    assert "| encoder | `masked_lm` |" in page

    found = {(LAND, PICTURES[2], method, 0.01, 0): done, (LAND, PICTURES[0], method, 1.0, 0): done}
    page = adaptation_page.report(work, {(method, model): 0.003 for model in PICTURES}, found, {})
    few, some, every = page.partition("## Land from above")[2].split("### Land from above")[1:]
    assert few.startswith(": 1 % of") and "| full fine-tuning |  |  | 50.0 |  | 0.003 |" in few
    assert some.startswith(": 10 % of") and "50.0" not in some
    assert every.startswith(": 100 % of") and "| full fine-tuning | 50.0 |  |  |  |  |  | 20 ms | 0.003 |" in every


@pytest.mark.slow
def test_the_command_adapts_a_base_and_makes_the_page(tmp_path):
    """A base of another width than the run file's, without its optimizer's state."""
    (tmp_path / "text").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "text" / name).mkdir()
        (tmp_path / "text" / name / "a.txt").write_text("A quick fox jumps over the lazy dog. " * 300)

    def run(module, *flags, params=()):
        line = [sys.executable, "-m", module, *flags, *(f"--gin_param={param}" for param in params)]
        done = subprocess.run(line, cwd=REPO, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    short = ["Experiment.total_steps = 2", "Experiment.eval_every = 2", "Experiment.save_every = 2"]
    short += ["Cosine.warmup_steps = 1", "Experiment.eval_batches = 1"]
    small = ["width = 16", "TextData.tokenizer = 'bytes'", f"TextData.source = '{tmp_path / 'text'}'"]
    small += ["Experiment.evaluators = ()", "Experiment.batch_size = 8", "TextData.specials = ('mask',)"]
    run(
        "launch.train",
        "--gin_file=runs/small/text_masked_lm.gin",
        f"--workdir={tmp_path / 'base'}",
        params=short + small,
    )
    slim = tmp_path / "bases" / "masked_lm" / "0"
    slim.parent.mkdir(parents=True)
    run("launch.convert", f"--workdir={tmp_path / 'base'}", f"--out={slim}", "--format=checkpoint")
    splits = {s: [[f"{w} {i}", w] for i in range(10) for w in ("go", "stop")] for s in ("train", "val", "test")}
    (tmp_path / "data_full.json").write_text(json.dumps(splits))
    line = [f"--bases={tmp_path / 'bases'}", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    line += [f"--clinc={tmp_path}", "--part=models"]
    run("benchmarks.adaptation", *line, params=short)
    page = (tmp_path / "out" / "adaptation.md").read_text()
    assert "| encoder | `masked_lm` | 0.0" in page and "M tokens" in page
    lines = page.partition("## Three architectures")[2].splitlines()
    rows = [line.split(" | ")[1] for line in lines if line.startswith(tuple(f"| {m.name} |" for m in METHODS))]
    assert len(rows) == len(METHODS) and all(0 <= float(row.rstrip(" |")) <= 100 for row in rows)
    run("benchmarks.adaptation", *line[:-1], "--part=none", params=short)
    assert (tmp_path / "out" / "adaptation.md").read_text() == page
