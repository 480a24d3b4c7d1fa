"""What there is, for people who look for it: the commands, the lists, the settings of one name."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch.run import catalogue, registry
from paradigm.errors import UserError
from paradigm.objective import Objective
from tests.test_house import ENTRY_POINTS

REPO = pathlib.Path(__file__).parent.parent.parent.parent


def answer(*command):
    return subprocess.run([sys.executable, "-m", *command], cwd=REPO, capture_output=True, text=True)


def test_launch_says_its_commands_and_train_lists_and_describes():
    done = answer("launch")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines() if line.startswith("  python -m launch.")]
    commands = {line[2]: line[3] for line in lines if not line[3].startswith("--list")}
    assert set(commands) == {name for name in ENTRY_POINTS if name.startswith("launch.")}
    assert commands["launch.train"] == "Pre-train from a gin file."
    done = answer("launch", "train")
    assert (done.returncode, done.stdout) == (2, "") and "did you mean python -m launch.train?" in done.stderr
    done = answer("launch.train", "--list")
    assert done.returncode == 0 and done.stdout == catalogue.listing() + "\n"
    done = answer("launch.train", "--describe=MEA")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr == (
        "error: --describe=MEA: nothing has that name: did you mean 'MAE'? --list says what there is\n"
    )


def test_the_list_has_all_that_gin_may_name_once_each_with_its_line():
    found = catalogue.by_kind()
    names = [name for kind in catalogue.KINDS for name in found[kind]]
    assert len(names) == len(set(names)) and set(names) == set(registry.configurables()) | set(registry.shipped("runs"))
    assert all(line for names in found.values() for line in names.values())
    text, images = {"t5", "gpt", "bert", "bart"}, {"vit", "resnet"}
    pairs = {"clip_vit", "clip_text", "siglip_text", "coca_text", "cappa_text", "single_stream"}
    assert set(found["models"]) == text | images | pairs
    assert {"TextData", "ImageData", "PairData", "TextMixture"} <= set(found["data"])
    assert "Muon" in found["optimizers"] and "WSD" in found["schedules"] and "ZeroShot" in found["evaluators"]
    assert found["runs"]["runs/demo.gin"].startswith("Span corruption on the text of Python")
    assert all(f"  {name}" in catalogue.listing() for name in names)


def test_a_description_has_every_setting_its_default_and_its_meaning():
    text = catalogue.describe("MAE")
    for wanted in (
        "MAE (objectives; vision.objectives.mae): Pixels of masked patches from the visible ones.",
        "MAE.encoder = (required)  a ViT with a class token.",
        "MAE.mask_ratio = 0.75  part of the patches that is hidden.",
        "MAE.decoder_heads = 16  of the decoder (see Decoder), for pre-training alone.",
    ):
        assert wanted in re.sub(" {2,}", "  ", text)  # columns are as wide as the longest name
    fields = [field.name for field in dataclasses.fields(registry.configurables()["MAE"]) if field.init]
    assert all(f"MAE.{name} = " in text for name in fields)
    assert "Cosine.final = 0.0" in (cosine := catalogue.describe("Cosine")) and "`final` from there on" in cosine
    assert "vit.overrides = ANY" in catalogue.describe("vit")
    assert catalogue.describe("runs/demo.gin") == (registry.SHIPPED / "runs/demo.gin").read_text().rstrip()


def test_each_setting_is_told_of():
    """In an entry of its own, or by name in the text that is then printed whole."""
    for name, configurable in registry.configurables().items():
        entries = catalogue.settings(configurable)
        text = catalogue.describe(name)
        assert all(f"{name}.{key} = {default}" in text for key, default, _ in entries)
        if issubclass(type(configurable), type) and issubclass(configurable, Objective):
            own = [key for key, _, meaning in entries if not meaning and key not in ("parts", "pattern", "boundaries")]
            assert not own, f"{name} says nothing of {own}"


@pytest.mark.parametrize("name, near", [("mae", "MAE"), ("Adam", "AdamW"), ("runs/dmeo.gin", "runs/demo.gin")])
def test_an_unknown_name_is_met_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"--describe={name}: nothing has that name: did you mean '{near}'"):
        catalogue.describe(name)


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("command", [("launch",), ("launch.train", "--list"), ("launch.show", "--help")])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(command, buffered):
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=REPO,
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # before anything is written
    assert (process.stderr.read(), process.wait()) == ("", 141)
