"""launch.compile: what it says of a step, when the step does not fit, and the page that is made of it."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from launch.aot import hlo, report, table, topology
from launch.aot.topology import parse_topology
from launch.run import registry
from launch.run.experiment import bound, completed
from paradigm import trees
from paradigm.errors import UserError
from paradigm.optim import Adafactor, AdamW
from paradigm.step import init_state
from t5like.models import gpt
from t5like.objectives import NextToken
from t5like.vocabulary import Vocabulary
from tests import miniatures
from tests.launch import small

REPO = pathlib.Path(__file__).parents[3]
SMOKE = sorted(path.relative_to(registry.SHIPPED).as_posix() for path in registry.SHIPPED.glob("runs/smoke/*.gin"))
CHIP = topology.Chip(1e12, 1 << 40, 1e11, 1e10, 1e9, ("8",))  # as if a CPU were one


@pytest.fixture
def chip(monkeypatch):
    """Has virtual CPU devices pass for chips; what is given changes the chip."""
    return lambda **how: monkeypatch.setitem(topology.CHIPS, "cpu", dataclasses.replace(CHIP, **how))


def run(*flags, **environment):
    command = [sys.executable, "-m", "launch.compile", *flags]
    variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | environment
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=variables)


def language(**how):
    return NextToken(gpt("tiny", **{**dict(vocab_size=64, d_model=32, heads=2, layers=3), **how}), length=32).bind(
        Vocabulary(64, pad=0, eos=1)
    )


def reported(objective, mesh="fsdp:8", **settings):
    settings = {"optimizer": AdamW(1e-3), "batch_size": 16, **settings}
    return report.report(small.experiment(objective, **settings), parse_topology("cpu:8"), jax.devices(), mesh)


def test_the_command_needs_no_data_and_ends_with_one_object():
    done = run("--gin_file=runs/smoke/next_token.gin", "--topology=cpu:4", "--mesh=fsdp:2,tensor:2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chips"] == 4 and found["mesh"] == "data:1,fsdp:2,tensor:2" and found["fits"] is True
    assert found["bytes_per_chip"] == found["arguments"] + found["temporaries"]
    assert found["arguments"] == pytest.approx(sum(found["arguments_by_kind"].values()), rel=1e-3)
    assert set(found["collectives"]) & {"all-gather", "all-reduce"} and found["compile_seconds"] > 0


def test_flops_are_of_every_layer_and_every_chip():
    """What the program multiplies on all chips is near the formula; a scan counted once would be a third of it."""
    found = reported(language(), "data:8")
    assert 0.9 < 8 * found["compiled_flops_per_chip"] / found["flops"] < 1.6
    again = reported(language(remat="full"), "data:8")
    assert again["compiled_flops_per_chip"] > 1.1 * found["compiled_flops_per_chip"]


def test_the_largest_gather_is_one_layer_or_one_leaf():
    objective = language(layers=6, d_model=64)
    found = reported(objective)
    shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0)))
    layer = sum(x.size * 4 for x in jax.tree.leaves(shapes["model"]["decoder"]["layers"])) / 6
    single = max(x.size * 4 for x in jax.tree.leaves({k: v for k, v in shapes["model"].items() if k != "decoder"}))
    assert 0 < found["collectives"]["all-gather"]["largest"] <= max(layer, single)


def test_a_large_vocabulary_needs_no_logits_of_all():
    """Vocabulary 256k, length 2048: what a step needs beside its arguments is far less than one [B, L, V]."""
    objective = NextToken(
        gpt("tiny", vocab_size=1 << 18, d_model=64, heads=2, layers=1, remat="full"), length=2048
    ).bind(Vocabulary(1 << 18, pad=0, eos=1))
    found = reported(objective, "data:8", batch_size=8, optimizer=Adafactor(1e-3))
    logits = 2048 * (1 << 18) * 4  # of the one row that each device has
    assert found["temporaries"] < 0.6 * logits, found["temporaries"] / logits


def test_every_phase_and_the_dearest_first():
    found = reported(miniatures.alternating(), "data:8", batch_size=8)
    assert set(found["phases"]) == set(miniatures.alternating().phases())
    assert found["bytes_per_chip"] == max(p["bytes_per_chip"] for p in found["phases"].values())


def test_what_does_not_fit_says_which_term_and_what_to_change(chip):
    chip(hbm=10_000)
    found = reported(language(), "data:8", batch_size=8)
    assert not found["fits"]
    size, change = found["advice"]
    assert "main: " in size and "temporaries" in size and "it has 9.766 KiB" in size
    assert "remat = 'full' (now 'none')" in change and "tensor:2" in change
    assert "Experiment.microbatches" not in change  # a row a chip cannot be cut
    found = reported(language(), "data:8", batch_size=16)
    order = [found["advice"][1].index(x) for x in ("'dots'", "Experiment.microbatches = 2", "'full'", "tensor:2")]
    assert order == sorted(order)  # what costs least first
    sizes = {"temporaries": 40, "hbm_per_chip": 20, "arguments": 5}  # 40 / 4 and 5 would fit
    assert report._parts(small.experiment(language(), batch_size=64), 8, sizes) == 4
    assert report._parts(small.experiment(language(), batch_size=64, microbatches=2), 8, sizes) == 8
    assert report._parts(small.experiment(miniatures.CoupledStatistics(), batch_size=64), 8, sizes) is None


def test_a_state_that_does_not_fit_asks_for_shards():
    sizes = {"params": 10, "optimizer": 20, "extra": 0, "batch": 1}
    found = {
        "fits": False,
        "arguments_by_kind": sizes,
        "temporaries": 5,
        "arguments": 31,
        "bytes_per_chip": 36,
        "hbm_per_chip": 30,
    }
    experiment = small.experiment(language(), mesh="data:8")
    (_, change) = report._advice(experiment, found, parse_topology("cpu:8"))
    assert change.startswith("optimizer is what is too large") and "--mesh=data:1,fsdp:-1" in change
    assert "Adafactor" in change


@pytest.mark.parametrize("text, needed", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (119.33G) exceeds "
     "available HBM (15.75G). ", 119.33 * 2**30),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.20G of 15.75G hbm.", 17.2 * 2**30),
    ("RESOURCE_EXHAUSTED: something new", float("inf")),
    ("INVALID_ARGUMENT: a bug", None),
])  # fmt: skip
def test_the_compilers_word_on_memory(text, needed):
    assert report._out_of_memory(text) == needed


def test_a_step_that_the_compiler_finds_too_large(monkeypatch, chip):
    from launch.run.program import Program

    chip(hbm=1 << 30)
    text = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (2.00G) exceeds available HBM (1.00G)."
    monkeypatch.setattr(Program, "compile", lambda *_: (_ for _ in ()).throw(RuntimeError(text)))
    found = reported(language())
    assert not found["fits"] and found["temporaries"] == 2 << 30 and "temporaries 2 GiB" in found["advice"][0]
    monkeypatch.setattr(Program, "compile", lambda *_: (_ for _ in ()).throw(RuntimeError("RESOURCE_EXHAUSTED: how?")))
    assert not reported(language())["fits"]
    monkeypatch.setattr(Program, "compile", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        reported(language())


def test_roofline_by_hand(chip):
    chip()
    inside = hlo.Collective("all-gather", "1", 1e9, 4, False, times=10)  # sends 3/4 of 1e9, ten times
    across = hlo.Collective("all-reduce", "2", 1e8, 2, True)  # 2 * 1/2 of 1e8
    found = report.roofline(hlo.Cost(4e11, 1e10, (inside, across)), 1.6e12, parse_topology("cpu:8"))
    assert [found[k] for k in ("compute", "memory", "interconnect", "network")] == [0.4, 0.1, 0.75, 0.1]
    assert found["bound"] == "interconnect" and found["step_seconds"] == 0.75 and found["without_overlap"] == 1.35
    assert found["mfu"] == pytest.approx(1.6e12 / 8 / 1e12 / 0.75, rel=1e-3)


def test_the_dearest_terms_of_a_step(chip):
    """Named by module and line; where the MLP is wide, its products come first."""
    chip(bandwidth=1e15, link=1e15)
    found = reported(language(d_ff=512))["terms"]
    assert len(found) == 5 and [x["seconds"] for x in found] == sorted((x["seconds"] for x in found), reverse=True)
    assert {one["term"] for one in found[:3]} == {f"decoder/layers/mlp/{n} dot_general" for n in ("gate", "up", "down")}
    assert all(re.fullmatch(r"paradigm/\w+\.py:\d+", one["source"]) for one in found)
    assert found[0]["flops"] == 3 * (2 * 16 / 8 * 32 * 32 * 512) * 3  # passes, a chip's tokens, widths, layers


def test_a_mesh_for_other_chips_than_the_runs_own():
    fit = lambda chips, **how: report.fitting_mesh(small.experiment(language(), **how), chips)
    assert fit(8, mesh="data:1,fsdp:4,tensor:2", batch_size=16) == "data:1,fsdp:4,tensor:2"
    assert fit(4, mesh="data:1,fsdp:64,tensor:1", batch_size=16) == "data:1,fsdp:4,tensor:1"
    assert fit(16, mesh="data:4", batch_size=8) == "data:8,fsdp:1,tensor:2"  # eight rows, and so two chips a row
    # No dim of 32 divides over 64 chips.
    assert fit(64, mesh="data:1,fsdp:16,tensor:1", batch_size=64) == "data:4,fsdp:16,tensor:1"
    assert fit(16, mesh="data:4,fsdp:2,tensor:1", batch_size=16) == "data:8,fsdp:2,tensor:1"  # fsdp stays
    assert fit(2, mesh="data:2,fsdp:4,tensor:1", batch_size=16) == "data:1,fsdp:2,tensor:1"
    with pytest.raises(UserError, match="a multiple of 16|does not divide"):
        fit(16, mesh="data:4", batch_size=2)


@pytest.mark.parametrize("flags, text", [
    (["--gin_file=runs/demo.gin", "--topology=v9:8"],
     "--topology=v9:8 is not known; there are v4:{2x2x1,2x2x2,"),
    (["--gin_file=runs/demo.gin", "--topology=v5e:4x4x4"], "v5e:{1x1,2x2,2x4,4x4,4x8,8x8,8x16,16x16}"),
    (["--gin_file=runs/demo.gin"], "--gin_file and --topology are required"),
    (["--gin_file=runs/demo.gin", "--topology=cpu:8", "--mesh=data:3"], "mesh 'data:3' does not divide the devices"),
    (["--gin_file=runs/demo.gin", "--topology=cpu:8", "--slices=0"], "--slices=0 must be at least 1"),
])  # fmt: skip
def test_bad_input_is_one_line(flags, text):
    done = run(*flags)
    assert done.returncode == 2 and text in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_missing_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no TPU compiler here: pip install -e '.\[aot\]'"):
        parse_topology("v5e:2x4")._tpu()
    with pytest.raises(UserError, match="no GPU compiler here"):
        parse_topology("h100:8")._gpu()


def test_the_page_has_a_row_for_each():
    found = {"run": "runs/x.gin", "fits": True, "topology": "v5e:16x16", "mesh": "data:256", "flops": 1e15}
    found |= {"hbm_per_chip": 1 << 34, "arguments": 1 << 30, "temporaries": 1 << 31}
    found |= {"collectives": {"all-reduce": {"count": 3, "bytes": 1 << 20, "largest": 1}}}
    found |= {"settings": {"batch_size": "512"}, "reader": hlo.READER}
    line = {"step_seconds": 0.1, "without_overlap": 0.2, "estimate": 0.125, "bound": "memory", "mfu": 0.5}
    found |= {"roofline": line}
    lost = {"run": "runs/y.gin", "fits": False, "topology": "v5e:16x16", "error": "error: no", "reader": hlo.READER}
    page = table.page({"a": found, "b": lost})
    row = "| x | v5e:16x16 | data:256 | 2 | yes | 16 GiB | 1 GiB | 2 GiB | 1e+15 | 100 ms | 200 ms | 125 ms | memory | "
    assert row + "50 % | 40 % | all-reduce 1 MiB |" in page
    assert all(line.count("|") == len(table.COLUMNS) + 1 for line in page.splitlines() if line.startswith("|"))
    assert "read before" not in page
    page = table.page({"a": {**found, "reader": hlo.READER - 1}, "b": lost})  # its times are marked, and said to be old
    assert "| x \\* | " in page and "| y | " in page and "read before launch/aot/hlo.py" in page


def test_the_page_keeps_what_a_person_wrote_below_it():
    before = table.page({}) + "\n## Notes\n\nOf a person.\n"
    assert table.page({}, before) == before and "Notes" not in table.page({}, "another page")


def test_a_run_has_a_row_on_the_slice_that_its_mesh_names_and_on_those_it_has_rows_of():
    assert table.topologies("runs/t5_small_c4.gin", {}) == ["v5e:4x4"]
    assert table.topologies("runs/t5_xxl_c4.gin", {}) == ["v5e:16x16"]
    rows = {"a": {"run": "runs/t5_small_c4.gin", "topology": "v5p:4x4x4"}}
    assert table.topologies("runs/t5_small_c4.gin", rows) == ["v5p:4x4x4"]


tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install -e '.[aot]'"
)


@tpu
def test_a_small_tpu_slice():
    flags = ["--gin_file=runs/smoke/next_token.gin", "--topology=v5e:2x2", "--mesh=fsdp:2,tensor:2"]
    done = run(*flags, JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chips"] == 4 and found["fits"] and found["hbm_per_chip"] == int(15.75 * 2**30)
    assert found["collectives"] and 0 < found["roofline"]["mfu"] <= 1


@tpu
@pytest.mark.slow
@pytest.mark.parametrize("run_file", SMOKE)
def test_every_objective_compiles_for_a_tpu(run_file):
    done = run(f"--gin_file={run_file}", "--topology=v5e:2x2", "--mesh=data:2,fsdp:2", JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["compiled_flops_per_chip"] > 0 and 0 < found["roofline"]["mfu"] <= 1


@tpu
@pytest.mark.slow
def test_two_slices_cross_the_network():
    flags = ["--gin_file=runs/smoke/next_token.gin", "--topology=v5e:2x2", "--slices=2", "--mesh=data:2,fsdp:-1"]
    done = run(*flags, JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chips"] == 8 and found["roofline"]["network"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("run", SMOKE)
def test_no_gather_of_any_objective_is_larger_than_a_layer_or_a_leaf(run):
    """What is cut over eight devices comes together layer by layer, never all at once."""
    experiment = completed(bound(registry.parse([run])))
    found = report.report(experiment, parse_topology("cpu:8"), jax.devices(), "fsdp:8")
    state = jax.eval_shape(lambda: init_state(experiment.objective, experiment.optimizer, 0))
    stacks, single = {}, [0]
    for name, x in [*trees.named_leaves(state.params), *trees.named_leaves(state.extra)]:  # a queue is a leaf too
        if trees.is_stacked(name):
            owner = name.split("layers")[0]
            stacks[owner] = stacks.get(owner, 0) + 4 * x.size / x.shape[0]
        else:
            single.append(4 * x.size)
    most = max(*stacks.values(), *single)
    phases = found.get("phases", {"main": found})
    largest = {phase: p["collectives"].get("all-gather", {"largest": 0})["largest"] for phase, p in phases.items()}
    assert max(largest.values()) <= most, (largest, most)
