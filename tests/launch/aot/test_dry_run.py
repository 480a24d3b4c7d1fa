"""--dry_run: the table and the bytes by kind, for every phase, with stand-ins for devices that are not there."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch.aot.dry_run import readable, report
from launch.run.experiment import Experiment
from paradigm.optim import AdamW
from tests.miniatures import HIDDEN, WIDTH, NumbersData, TeacherQueue, TwoTerms, alternating

REPO = pathlib.Path(__file__).parents[3]


def rows(text):
    """{first cell: the other cells} of all lines that have columns."""
    return {cells[0]: cells[1:] for line in text.splitlines() if len(cells := re.split(r"  +", line)) > 2}


def test_bytes_are_those_of_one_device():
    objective = TeacherQueue()
    text = report(Experiment(objective, NumbersData(), AdamW(1e-3), 10, 16, mesh="data:2,fsdp:2,tensor:2"))
    found = rows(text)
    count = WIDTH * HIDDEN + HIDDEN * HIDDEN
    assert f"\n{count:,} parameters on 8 devices" in text
    assert found["encoder/in/kernel"] == [f"{WIDTH}, {HIDDEN}", "float32", "fsdp, tensor", str(WIDTH * HIDDEN)]
    params, frozen, optimizer, extra, batch, activations, total, flops, *beside = found["main"]
    assert frozen == "0 B" and params == f"{count * 4 // 4} B"  # float32, cut over fsdp and tensor
    assert optimizer == f"{2 * count * 4 // 4} B"
    queue = objective.length * HIDDEN * 4 // 4  # cut over data and fsdp
    assert extra == f"{count * 4 // 4 + queue + 4} B"  # a teacher, the queue and its cursor
    assert batch == f"{16 // 4 * (WIDTH * 4 + 8 + 4)} B"  # x, index and mask
    assert float(activations.split()[0]) > 0 and float(total.split()[0]) > 0
    model = objective.flops(objective.batch_spec(16))
    assert flops == f"{model:.4g}"
    compiled, ratio = beside
    assert float(ratio.split()[0]) == pytest.approx(model / float(compiled), rel=0.01)


@dataclasses.dataclass(frozen=True)
class Boasts(TwoTerms):
    """Its formula counts `times` as many as there are."""

    times: float = 1.0

    def forward_flops(self, batch_spec):
        return {name: self.times * n for name, n in super().forward_flops(batch_spec).items()}


def test_model_flops_stand_beside_what_the_program_multiplies():
    """Two products forward and three backward (the inputs need none), in two microbatches, on all devices."""
    by_hand = 64 * (2 * 2 * WIDTH * HIDDEN + 3 * 2 * HIDDEN * HIDDEN)
    for mesh in ("data:8", "data:2,fsdp:4"):
        text = report(Experiment(Boasts(), NumbersData(), AdamW(1e-3), 10, 64, microbatches=2, mesh=mesh))
        flops, compiled, ratio = rows(text)["main"][-3:]
        assert float(compiled) == pytest.approx(by_hand, rel=1e-3)  # four digits are shown
        assert float(ratio.split()[0]) == pytest.approx(float(flops) / by_hand, rel=0.01)
    assert "(above 1)" not in report(Experiment(Boasts(times=0.5), NumbersData(), AdamW(1e-3), 10, 16, mesh="data:8"))
    text = report(Experiment(Boasts(times=2.0), NumbersData(), AdamW(1e-3), 10, 16, mesh="data:8"))
    assert rows(text)["main"][-1].endswith(" (above 1)") and "warning: a ratio above 1: the formula counts more" in text


def test_what_is_frozen_is_counted_apart():
    objective = TeacherQueue()
    kept = Experiment(objective, NumbersData(), AdamW(1e-3), 10, 16, mesh="data:8", freeze=(("/in/", True),))
    text, free = report(kept), report(dataclasses.replace(kept, freeze=()))
    total, trained = WIDTH * HIDDEN + HIDDEN * HIDDEN, HIDDEN * HIDDEN
    assert f"{total:,} parameters ({trained:,} trained, {100 * trained / total:.3g} %) on 8 devices" in text
    found, whole = rows(text), rows(free)
    assert found["encoder/in/kernel"][-1] == f"{WIDTH * HIDDEN} frozen"
    assert found["main"][:3] == [readable(4 * trained), readable(4 * WIDTH * HIDDEN), readable(8 * trained)]
    assert whole["main"][:3] == [readable(4 * total), "0 B", readable(8 * total)]


def test_every_phase_has_its_row():
    found = rows(report(Experiment(alternating(), NumbersData(), AdamW(1e-3), 10, 8, mesh="data:8")))
    assert set(alternating().phases()) <= set(found)


def test_a_laptop_can_look_at_a_mesh_that_it_does_not_have(tmp_path):
    flags = ["--gin_file=runs/smoke/next_token.gin", "--mesh=data:2,fsdp:4,tensor:2", "--dry_run"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "launch.train", *flags, f"--compilation_cache={tmp_path}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "parameters on 16 devices (data:2,fsdp:4,tensor:2)" in done.stdout and "logits/kernel" in done.stdout
