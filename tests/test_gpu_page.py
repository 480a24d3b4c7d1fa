"""benchmarks.gpu: what is done again, what is stopped, and its tables."""

import sys
import time

from benchmarks import gpu

ROWS = [
    {"part": ["environment"], "device": "a card"},
    {"part": ["steps", "mae_gpu", "paradigm"], "attention": "auto", "error": "stopped after 9 s"},
    {"part": ["steps", "mae_gpu", "paradigm"], "attention": "auto", "step_s": 0.09, "mfu": 0.5},
    {"part": ["steps", "mae_gpu", "peer"], "step_s": 0.12},
    {"part": ["steps", "mae_gpu", "peer compiled"], "error": "out of memory"},
    {"part": ["lora", "causal_lm_gpu", "LoRA"], "attention": "auto", "step_s": 0.2, "peak_device_mb": 7},
    {"part": ["bits", "mae"], "said": ["same", "2 of 2"]},
]


def test_the_tables_have_the_newest_of_each():
    page = gpu.page(ROWS)
    assert "| mae_gpu | 0.0900 s |  | 0.1200 s | out of memory | 0.75 |  | 50 % |" in page
    assert "| LoRA | 0.2000 s | 7 |" in page and "| bits mae | same · 2 of 2 |  |" in page


def test_what_was_done_is_not_done_again_and_what_failed_is(tmp_path):
    end = time.monotonic() + 600
    say = lambda text: gpu.Job(60, [sys.executable, "-c", text])
    results = gpu.Results(tmp_path / "gpu.jsonl")
    results.once(("a",), say("print('{\"step_s\": 1}')"), end)
    results.once(("b",), say("raise ValueError('no')"), end)
    again = gpu.Results(tmp_path / "gpu.jsonl")
    again.once(("a",), say("print('{\"step_s\": 2}')"), end)
    again.once(("b",), say("print('fine')"), end)
    again.once(("c",), say("print('late')"), time.monotonic())
    found = [{k: v for k, v in row.items() if k in ("part", "step_s", "said", "error")} for row in again.rows]
    assert found == [
        {"part": ["a"], "step_s": 1},
        {"part": ["b"], "said": [], "error": "ValueError: no"},
        {"part": ["b"], "said": ["fine"]},
        {"part": ["c"], "error": "not run: no time was left"},
    ]


def test_a_process_is_stopped_with_what_it_has_started(tmp_path):
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    (row,) = gpu.run(gpu.Job(60, [sys.executable, "-c", parent]), 1)
    assert row["error"] == "stopped after 1 s" and row["process_s"] < 3
    time.sleep(3)
    assert not (tmp_path / "late").exists()
