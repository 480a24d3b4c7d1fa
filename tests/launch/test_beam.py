"""--engine=beam: the same bytes as by processes of this machine, and what is said where it cannot be."""

import pathlib
import sys

import pytest

from launch.run import beam
from paradigm.errors import UserError
from t5like import prepare as P
from t5like.data import TextData
from t5like.prepare_records import RECORDS
from t5like.prepare_windows import WINDOWS
from t5like.records import TextRecords
from t5like.shards import shard_name


@pytest.fixture
def engine(monkeypatch):
    pytest.importorskip("apache_beam", reason='Apache Beam is not there: pip install -e ".[beam]"')
    monkeypatch.setattr(P, "JOB_BYTES", 4000)
    return beam.engine(["--runner=DirectRunner"])


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"document {i} of twelve, each of another length. " * (20 + i))
    rows = "".join(f'{{"question": "what is {i}?", "answer": "{i * i}"}}\n' for i in range(300))
    (tmp_path / "qa").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "qa" / f"{name}.jsonl").write_text(rows.replace("what", name))
    return tmp_path


def files(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def windows(corpus):
    return TextData(str(corpus / "corpus"), window=32, valid=0.2), WINDOWS


def records(corpus):
    return TextRecords(str(corpus / "qa"), input="{question}", target="{answer}", tokenizer="bytes"), RECORDS


@pytest.mark.parametrize("make", [windows, records])
def test_the_bytes_are_those_of_this_machine(make, corpus, engine):
    recipe, kind = make(corpus)
    P.prepare(recipe, corpus / "here", workers=1, progress=False, kind=kind)
    P.prepare(recipe, corpus / "beam", progress=False, kind=kind, engine=engine)
    assert files(corpus / "beam") == files(corpus / "here")
    assert len(list((corpus / "beam").glob("train-*"))) > 1


def dies_in_the_middle(*arguments):
    """The job; of the fourth the first time, no more than a half-written file."""
    out, job = pathlib.Path(arguments[4]), arguments[5]
    if job == 3 and not (out.parent / "died").exists():
        (out.parent / "died").touch()
        (out / f"{shard_name('train', job, arguments[6])}.1234abcd.tmp").write_bytes(b"half")
        raise MemoryError("the worker is gone")
    with open(out.parent / "jobs", "a") as file:
        file.write(f"{job}\n")
    return WINDOWS.job(*arguments)


def test_a_job_that_dies_is_done_again_and_nothing_is_half_there(corpus, engine):
    recipe, kind = windows(corpus)
    kind = kind._replace(job=dies_in_the_middle)
    P.prepare(recipe, corpus / "here", workers=1, progress=False)
    run = lambda: P.prepare(recipe, corpus / "beam", progress=False, kind=kind, engine=engine)
    with pytest.raises(UserError, match="^--engine=beam: a job failed: .*worker is gone.*; what is finished is kept"):
        run()
    assert not (corpus / "beam" / "meta.json").exists()
    finished = {int(path.name[5:10]) for path in (corpus / "beam").glob("done-*")}
    assert 3 not in finished and not list((corpus / "beam").glob("train-00003-of-*.array_record"))
    (corpus / "jobs").unlink()
    run()
    again = {int(line) for line in (corpus / "jobs").read_text().split()}
    assert 3 in again and not again & finished
    assert files(corpus / "beam") == files(corpus / "here")


def test_workers_that_write_somewhere_else_are_told(corpus):
    recipe, kind = windows(corpus)
    with pytest.raises(UserError, match=r"1 of 1 jobs were done and left nothing in .*beam: give a directory that all"):
        P.prepare(recipe, corpus / "beam", progress=False, kind=kind, engine=lambda work, arguments: None)
    assert not (corpus / "beam" / "meta.json").exists()


def test_a_flag_that_beam_does_not_know(engine):
    with pytest.raises(UserError, match="--engine=beam: Beam knows no flag --runer"):
        beam.engine(["--runer=DirectRunner"])


def test_without_beam_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r'^--engine=beam needs Apache Beam: pip install -e "\.\[beam\]" in the'):
        beam.engine([])
