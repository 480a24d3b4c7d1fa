"""--mesh=search: which meshes it tries, in what order it names them, and what it says of those that cannot be."""

import dataclasses

import jax
import pytest

from launch.aot import search, topology
from launch.aot.topology import Chip, parse_topology
from launch.run import registry
from launch.run.mesh import parse_mesh
from paradigm.errors import UserError
from paradigm.optim import AdamW
from tests.launch import small
from tests.launch.aot.test_report import language, run

CHIP = Chip(1e12, 1 << 40, 1e11, 1e10, 1e9, ("8",))


@pytest.fixture
def chip(monkeypatch):
    """Has virtual CPU devices pass for chips; what is given changes the chip."""
    return lambda **how: monkeypatch.setitem(topology.CHIPS, "cpu", dataclasses.replace(CHIP, **how))


@pytest.fixture
def compiled(monkeypatch):
    """No compiler: {mesh as a flag: seconds of a step}, and the meshes that were compiled, in order. A mesh without
    seconds does not fit, as the compiler says, nor does one of negative seconds, as its bytes do."""
    seconds, done = {}, []

    def of_program(program, topology):
        mesh = search.flag(parse_mesh(program.experiment.mesh))
        done.append(mesh)
        fits = seconds.get(mesh, -1) > 0
        roofline = {"estimate": abs(seconds[mesh])} if mesh in seconds else None
        found = {"phase": "main", "fits": fits, "roofline": roofline, "bytes_per_chip": 1000}
        return {**found, "advice": [] if fits else ["main: 20 GiB a chip"], "mesh": mesh}

    monkeypatch.setattr(search, "of_program", of_program)
    return seconds, done


def searched(chips=8, said=None, objective=None, **settings):
    settings = {"optimizer": AdamW(1e-3), "batch_size": 16, "mesh": "fsdp:-1", **settings}
    experiment = small.experiment(objective or language(), **settings)
    lines = [] if said is None else said
    return search.search(experiment, parse_topology(f"cpu:{chips}"), jax.devices()[:chips], lines.append)


def sizes(*of):
    return [dict(zip(("data", "fsdp", "tensor"), each)) for each in of]


@pytest.mark.parametrize("own, chips, slices, found", [
    # A pod: the state over all of it, over a quarter and a sixteenth, or everywhere; then layers over two chips.
    ((1, 256, 1), 256, 1, [(1, 256, 1), (4, 64, 1), (16, 16, 1), (256, 1, 1),
                           (1, 128, 2), (4, 32, 2), (16, 8, 2), (128, 1, 2)]),
    # The run's own first, tensor a half and the double of it.
    ((2, 1, 4), 8, 1, [(2, 1, 4), (1, 2, 4), (1, 4, 2), (4, 1, 2), (1, 1, 8)]),
    ((1, 1, 16), 16, 1, [(1, 1, 16), (1, 2, 8), (2, 1, 8)]),  # and no more ways of tensor than 8
    # Slices are spanned by data alone.
    ((2, 8, 1), 16, 2, [(2, 8, 1), (8, 2, 1), (16, 1, 1), (2, 4, 2), (8, 1, 2)]),
    ((1, 1, 1), 1, 1, [(1, 1, 1)]),
])  # fmt: skip
def test_candidates(own, chips, slices, found):
    (own,) = sizes(own)
    assert search.candidates(own, chips, slices) == sizes(*found)


def test_the_fastest_first_then_those_that_do_not_fit(chip, compiled):
    chip()
    seconds, done = compiled
    seconds |= {"fsdp:8": 0.3, "data:8": 0.1, "fsdp:4,tensor:2": 0.2, "data:4,fsdp:2": -0.01}
    said = []
    found = searched(said=said)
    assert done == ["fsdp:8", "data:4,fsdp:2", "data:8", "fsdp:4,tensor:2", "data:4,tensor:2"]
    assert [row["mesh"] for row in found["search"]][:3] == ["data:8", "fsdp:4,tensor:2", "fsdp:8"]
    assert found["mesh"] == "data:8" and found["fits"]
    assert {row["note"] for row in found["search"][3:]} == {"does not fit: main: 20 GiB a chip"}
    assert said[0] == "fsdp:8: 300 ms, 1000 B a chip" and len(said) == 5
    lines = search.table(found["search"])
    assert lines[1].split() == ["data:8", "100", "ms,", "1000", "B", "a", "chip"] and lines[-1] == "best: --mesh=data:8"


def test_what_cannot_be_is_not_compiled(chip, compiled):
    """Four rows do not go over eight chips; and no state is compiled that is larger than a chip."""
    chip()
    seconds, done = compiled
    seconds["data:4,tensor:2"] = 0.1
    found = searched(batch_size=4, mesh="data:4,tensor:2")
    refused = {row["mesh"]: row["note"] for row in found["search"]}
    assert "fsdp:8" not in done and "Experiment.batch_size=4 does not divide over data x fsdp" in refused["fsdp:8"]
    done.clear()
    chip(hbm=400_000)
    seconds["fsdp:8"] = 0.1
    found = searched()
    refused = {row["mesh"]: row["note"] for row in found["search"]}
    assert "data:8" not in done and refused["data:8"].startswith("does not fit: the state alone has ")
    assert found["mesh"] == "fsdp:8"


def test_a_run_file(chip, compiled):
    """As it is parsed, before its objective knows a vocabulary."""
    chip()
    compiled[0]["data:2"] = 0.1
    experiment = registry.parse(["runs/smoke/next_token.gin"])
    found = search.search(experiment, parse_topology("cpu:2"), jax.devices()[:2], str)
    assert found["mesh"] == "data:2" and len(found["search"]) == 3


def test_a_few_are_tried_and_none_may_fit(chip, compiled):
    chip()
    found = searched(objective=language(heads=4), mesh="data:2,fsdp:2,tensor:2")
    assert len(compiled[1]) == search.TRIES == 6
    assert not found["fits"] and search.table(found["search"])[-1] == "best: none fits"
    chip(hbm=10)
    with pytest.raises(
        UserError, match="--mesh=search: cpu:8 has no mesh for this run: fsdp:8 does not fit: the state"
    ):
        searched()


def test_compiled_for_two_chips(chip):
    """With the real compiler: on slow links the mesh that sends least is the fastest."""
    chip(link=1e6)
    found = searched(2, objective=language(vocab_size=64, layers=1))
    times = [row["estimate"] for row in found["search"]]
    assert len(times) == 3 and times == sorted(times) and found["fits"] and found["terms"]
    assert found["roofline"]["estimate"] == times[0] >= found["roofline"]["step_seconds"]
    assert search.flag(parse_mesh(found["mesh"])) == found["search"][0]["mesh"] == "data:2"


def test_no_search_where_no_speed_is_known():
    done = run("--gin_file=runs/smoke/next_token.gin", "--topology=cpu:2", "--mesh=search")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "goes by estimated time, and of --topology=cpu:2 no speed is known" in done.stderr
