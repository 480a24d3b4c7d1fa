"""The command line: what a person types, sees, and is told when it is wrong."""

import json
import subprocess
import sys

import pytest

from t5like.windows import PreparedText


def prepare(*arguments):
    return subprocess.run([sys.executable, "-m", "launch.prepare", *arguments], capture_output=True, text=True)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(5):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"document {i} " * 50)
    return str(tmp_path / "corpus")


def test_prepares_shows_progress_and_says_what_became_of_it(corpus, tmp_path):
    out = str(tmp_path / "out")
    done = prepare(f"--source={corpus}", f"--out={out}", "--window=64", "--valid_glob=3.txt", "--exclude=4.txt")
    assert done.returncode == 0, done.stderr
    assert "preparing" in done.stderr and done.stdout == ""
    assert "train      3 documents, 1,650 bytes, 1,653 tokens in 26 windows of 64 (1.00 bytes a token" in done.stderr
    assert "valid      1 documents" in done.stderr and "tokenizer  bytes: 359 ids" in done.stderr
    assert PreparedText(out).window == 64
    again = prepare(f"--source={corpus}", f"--out={out}", "--window=64", "--valid_glob=3.txt", "--exclude=4.txt")
    assert again.returncode == 0 and f"{out} is whole already" in again.stderr
    other = prepare(f"--source={corpus}", f"--out={out}", "--window=32")
    assert other.returncode == 2
    difference = "window=64 there, 32 now; valid_glob='3.txt' there, '' now; exclude='4.txt' there, '' now"
    assert other.stderr == f"error: {out} holds another corpus ({difference}): give another directory, or delete it\n"
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["settings"]["window"] == 64


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "error: --source is required, as in --source=stdlib"),
        (["--source=stdlib"], "error: --out is required, as in --out=/tmp/corpus"),
        (["stdlib"], "error: 'stdlib' is not a flag: did you mean --source=stdlib? See --help"),
        (["--sorce=stdlib"], "error: Unknown command line flag 'sorce'. Did you mean: source"),
        (["--source=stdlib", "--out=X", "--window=many"], "error: flag --window=many: invalid literal for int()"),
        (["--source=stdlib", "--out=X", "--workers=0"], "error: flag --workers=0: 0 is not a positive integer"),
        (["--source=stdlib", "--out=X", "--valid=2"], "error: valid=2.0: the held-out share of documents must lie in"),
        (["--source=/nowhere/x", "--out=X"], "error: source /nowhere/x: no such file or directory"),
        (["--source=stdlib", "--out=X", "--tokenizer=byte"], "error: tokenizer: 'byte' is neither"),
        (["--source=stdlib", "--out=/proc/x"], "error: /proc/x: cannot be written (No such file or directory)"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = prepare(*[a.replace("=X", f"={tmp_path / 'out'}") for a in arguments])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


def test_help():
    done = prepare("--help")
    assert done.returncode == 0 and done.stderr == ""
    for part in ("python -m launch.prepare --source=stdlib", "--invalid_utf8", "do not depend on --workers"):
        assert part in done.stdout
    assert "--alsologtostderr" not in done.stdout
