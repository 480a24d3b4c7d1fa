"""What a person can get wrong when starting a run: one line that names the place and the fix, and exit code 2."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from launch import train
from launch.run import experiment, loop, registry
from paradigm.errors import UserError
from t5like.tokenizers import ByteTokenizer

REPO = pathlib.Path(__file__).parent.parent.parent
T5, GPT = "runs/smoke/span_corruption.gin", "runs/smoke/next_token.gin"


def start(*flags):
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "launch.train", *flags, "--compilation_cache="]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=os.environ | {"PJRT_NPROC": "32"})


@pytest.mark.parametrize("flags, text", [
    ([f"--gin_file={T5}", "--gin_param=Experiment.total_step = 3"],
     "error: --gin_param:1: Experiment has no parameter 'total_step', did you mean 'total_steps'?"),
    ([f"--gin_file={T5}", "--gin_param=t5.size = 'tinny'"],
     "unknown T5 v1.1 size 'tinny': did you mean 'tiny'?"),
    ([f"--gin_file={T5}", "--mesh=data:3"],
     "error: mesh 'data:3' does not divide the devices: its fixed axes take 3 of 8 devices"),
    ([f"--gin_file={GPT}", "--dry_run", "--gin_param=Experiment.objective = 'NextToken'"],
     "error: Experiment.objective = 'NextToken' is no objective: write @NAME()"),
    (["--gin_fil=x"], "error: Unknown command line flag 'gin_fil'. Did you mean: gin_file"),
])  # fmt: skip
def test_the_command_says_one_line_and_exits_with_2(flags, text, tmp_path):
    done = start(*flags, f"--workdir={tmp_path}/run")
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and done.stdout == "" and len(lines) == 1, done.stderr
    assert text in lines[0]
    assert not (tmp_path / "run").exists()


def failure(run, *params, devices=8):
    with pytest.raises(UserError) as error:
        experiment.validate(experiment.bound(registry.parse([run], params)), devices)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("run, param, text", [
    (T5, "SpanCoruption.rate = 0.2", "--gin_param:1: unknown name 'SpanCoruption', did you mean 'SpanCorruption'?"),
    (T5, "Experiment.objective = @SpanCorupption()", "unknown name 'SpanCorupption', did you mean 'SpanCorruption'?"),
    (T5, "t5.version = '2'", "unknown T5 version '2'"),
    (T5, "t5.d_modle = 3", "unknown field of EncoderDecoder 'd_modle': did you mean 'd_model'?"),
    (GPT, "gpt.heads = 3", "3 heads do not divide d_model=128: choose a divisor as heads, or give head_dim"),
    (GPT, "gpt.style = 'gpt3'", "unknown GPT style 'gpt3': did you mean 'gpt2'?"),
    (T5, "Experiment.batch_size = 12", "Experiment.batch_size=12 does not divide over data x fsdp = 1 x 8 devices"),
    (T5, "Experiment.mesh = 'tensor:8'", "does not divide over mesh axis 'tensor' of 8 devices"),
    (T5, "t5.vocab_size = 300", "the tokenizer has 359 ids but the model 300: set its vocab_size to 359 or more"),
    (T5, "SpanCorruption.vocab_size = 359", "SpanCorruption has no parameter 'vocab_size'"),
    (T5, "TextData.extra_ids = 5", "needs 7 sentinels but the tokenizer has 5; set its extra_ids to at least 7"),
    (T5, "SpanCorruption.rate = 1.5", "rate must lie strictly between 0 and 1"),
    (GPT, "gpt.vocab_size = 300", "the tokenizer has 359 ids but the model 300: set its vocab_size to 359 or more"),
    (T5, "TextData.tokenizer = 'sentencpiece:640'", "did you mean 'sentencepiece:8192'?"),
    (T5, "TextData.specials = ['musk']", "'musk' is no special id that can be given; choose among bos, eos"),
])  # fmt: skip
def test_each_mistake_is_named(run, param, text):
    assert text in failure(run, param)


def test_the_data_s_tokenizer_decides_the_vocabulary(tmp_path):
    """A recipe's own, a saved one, or that of a prepared directory, whatever tokenizer the recipe names beside it."""
    of = lambda run, *params: experiment.bound(registry.parse([run], params)).objective
    sizes = lambda *params: (of(T5, *params).vocabulary.size, of(T5, *params).model.vocab_size)
    assert sizes("TextData.tokenizer = 'sentencepiece:9000'") == (9000, 9088)
    assert sizes("TextData.tokenizer = 'bytes'", "TextData.specials = ['mask', 'cls']") == (361, 384)
    assert sizes("t5.vocab_size = 1000") == (359, 1000)
    (tmp_path / "meta.json").write_text(
        json.dumps(
            dict(format="paradigm-text-1", settings={"window": 64}, fingerprint="x", shards=dict(train=[], valid=[]))
        )
    )
    ByteTokenizer(241).save(tmp_path / "tokenizer")
    assert sizes(f"TextData.source = '{tmp_path}'") == (500, 512)
    ByteTokenizer(150).save(tmp_path / "saved")
    bound = of(GPT, f"TextData.tokenizer = '{tmp_path}/saved'")
    assert bound.model.vocab_size == 512 and bound.vocabulary == ByteTokenizer(150).vocabulary
    elsewhere = registry.parse([GPT], ["TextData.tokenizer = '/not/here/tokenizer'"])
    assert experiment.bound(elsewhere) == elsewhere  # as a laptop looks at a pod's run
    with pytest.raises(UserError, match="^TextData.tokenizer='/not/here/tokenizer': nothing is there, and the mod"):
        experiment.validate(elsewhere, 1)
    assert experiment.bound(elsewhere, ByteTokenizer(5).vocabulary).objective.model.vocab_size == 384


def test_a_length_is_written_once_and_a_schedule_that_ends_before_the_run_is_told():
    longer = registry.parse([T5], ["Experiment.total_steps = 2000"])
    assert longer.optimizer.learning_rate.total_steps == 2000 and experiment.warnings(longer) == []
    for param, text in {
        "Cosine.total_steps = 100": "Cosine ends at step 100 of 240 and stays at 0: leave its total_steps out",
        "Cosine.warmup_steps = 300": "Cosine warms up for 300 steps and the run has 240: it never reaches its peak",
    }.items():
        run = registry.parse([T5], [param])
        assert [text in line for line in experiment.warnings(run)] == [True]


def test_a_missing_file_and_a_missing_binding(tmp_path):
    with pytest.raises(UserError, match="runs/dem.gin: no such file here or in .*, did you mean 'runs/demo.gin'"):
        registry.parse(["runs/dem.gin"])
    text = (registry.SHIPPED / T5).read_text().replace("Experiment.batch_size", "# Experiment.batch_size")
    (tmp_path / "mine.gin").write_text(text)
    assert failure(str(tmp_path / "mine.gin")).startswith(
        f"{tmp_path}/mine.gin: Experiment.batch_size is required and not set: the run file should set it, as runs/"
    )


def test_flags_that_are_missing_or_malformed(tmp_path):
    for flags, text in {
        (): "error: --gin_file is required, as in --gin_file=runs/demo.gin",
        (f"--gin_file={T5}",): "error: --workdir is required, as in --workdir=/tmp/demo; only --dry_run needs none",
        (f"--gin_file={T5}", "--workdir=x", "--profile=3"): "error: --profile=3 must be two steps, as in 10:13",
        (f"--gin_file={T5}", "--workdir=x", "--profile=13:10"): (
            "error: --profile=13:10 names no step: the first comes before the second, as in 10:13"
        ),
        ("--step_timeout=-1",): "error: flag --step_timeout=-1: -1.0 is not a non-negative number",
        ("runs/demo.gin",): "error: 'runs/demo.gin' is not a flag: did you mean --gin_file=runs/demo.gin? See --help",
    }.items():
        done = start(*flags)
        assert (done.returncode, done.stderr) == (2, text + "\n")


def test_a_notebook_gives_one_or_several(monkeypatch):
    monkeypatch.setattr(loop, "train", lambda experiment, workdir, **how: experiment)
    assert train.run(pathlib.PurePath(GPT), "x", "Experiment.seed = 5").seed == 5
    assert train.run([GPT], "x", ["Experiment.seed = 5", "Experiment.seed = 6"]).seed == 6


def test_letters_that_the_locale_lacks_end_nothing():
    script = "from launch.run import cli; cli.run(lambda argv: print('step 3 \u00b7 \u23ce'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}  # as on a machine with LANG=C and no UTF-8 mode
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "step 3 \\xb7 \\u23ce\n", "")
