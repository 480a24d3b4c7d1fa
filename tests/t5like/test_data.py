import gzip
import json
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.records import Subset, hash_of
from paradigm.schedule import Linear
from t5like import data, held_out
from t5like import prepare as P
from t5like.corrupt import NextTokenWindows, SpanNoise
from t5like.data import TextData, TextMixture
from t5like.prepare_windows import WINDOWS, summary
from t5like.tokenizers import ByteTokenizer
from t5like.windows import PreparedText, decode_window, encode_window
from tests.t5like.corpora import documents, files, make, text, windows

BYTES = ByteTokenizer().vocabulary

# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4"])
@pytest.mark.parametrize(
    "count, starts, segments",
    [
        (6, [], [1, 1, 1, 1, 1, 1]),
        (6, [2, 5], [1, 1, 2, 2, 2, 3]),
        (4, [], [1, 1, 1, 1, 0, 0]),
        (5, [1, 3], [1, 2, 2, 3, 3, 0]),
    ],
)
def test_window_codec(dtype, count, starts, segments):
    tokens = np.arange(3, 3 + count)
    raw = encode_window(tokens, np.array(starts, np.int64), 6, dtype)
    assert len(raw) == 6 * np.dtype(dtype).itemsize + 4 * (len(starts) + (count < 6))
    found, ids = decode_window(raw, 6, dtype)
    assert found.tolist() == tokens.tolist() + [0] * (6 - count) and ids.tolist() == segments
    assert found.dtype == ids.dtype == np.int32


@pytest.mark.parametrize("pad", [None, 5])
@pytest.mark.parametrize("count, starts", [(6, []), (6, [5]), (4, []), (4, [2]), (4, [1, 2]), (1, [])])
def test_windows_of_a_vocabulary_in_which_id_0_is_text(count, starts, pad):
    """GPT-2's id 0 is '!': where padding begins is told by the marks, or by a padding id elsewhere."""
    tokens = np.zeros(count, int)
    raw = encode_window(tokens, np.array(starts, np.int64), 6, "<u2", pad)
    found, segments = decode_window(raw, 6, "<u2", pad=pad)
    document = [1 + sum(place >= start for start in starts) for place in range(count)]
    assert segments.tolist() == document + [0] * (6 - count)
    assert found.tolist() == [0] * count + [pad or 0] * (6 - count)


def test_a_damaged_window_is_told():
    with pytest.raises(ValueError, match="a record of 7 bytes is not a window of 6 tokens"):
        decode_window(b"1234567", 6, "<u2")


def test_documents_survive_in_order_with_eos_between(folder, tmp_path):
    prepared = make(folder, tmp_path / "out", valid=0.1)
    train, valid = documents(prepared, "train"), documents(prepared, "valid")
    assert sorted(train + valid) == sorted(text(i) for i in range(30)) and valid
    counts = prepared.meta["counts"]
    assert [counts[s]["documents"] for s in ("train", "valid")] == [len(train), len(valid)]
    assert counts["train"]["tokens"] == sum(len(t.encode()) + 1 for t in train)
    for window in windows(prepared, "train"):
        ends = np.flatnonzero(window["tokens"] == 1)
        np.testing.assert_array_equal(
            np.flatnonzero(np.diff(window["segments"]) > 0), ends[ends + 1 < np.count_nonzero(window["segments"])]
        )
        assert window["segments"][0] == 1 and len(window["tokens"]) == 32


def test_the_last_window_is_padded_and_counted(tmp_path):
    (tmp_path / "x.txt").write_text("z" * 119)  # 120 tokens with eos
    prepared = make(tmp_path / "x.txt", tmp_path / "out", valid=0.0)
    assert prepared.meta["counts"]["train"]["windows"] == 4 and prepared.meta["counts"]["train"]["padding"] == 8
    last = windows(prepared, "train")[-1]
    assert last["segments"].tolist() == [1] * 24 + [0] * 8 and last["tokens"][23:25].tolist() == [1, 0]


# ---------------------------------------------------------------------------------------------------------- the split


def test_validation_by_glob_and_exclude(folder, tmp_path):
    prepared = make(folder, tmp_path / "out", valid_glob="b/0*", exclude="b/2*, a/1*")
    assert "excluded   of these what matches b/2*, a/1*\n" in summary(prepared.meta)
    assert sorted(documents(prepared, "valid")) == sorted(text(i) for i in (1, 3, 5, 7, 9))
    kept = [i for i in range(30) if not (i % 2 and i >= 20) and not (i % 2 == 0 and 10 <= i < 20)]
    assert sorted(documents(prepared, "train")) == sorted(text(i) for i in kept if i not in (1, 3, 5, 7, 9))


def test_some_document_is_always_held_out(folder, tmp_path):
    hashes = {path: hash_of(path.relative_to(folder).as_posix()) for path in folder.rglob("*.txt")}
    for path in [path for path, value in hashes.items() if value < 0.05]:
        path.unlink()
    nearest = min((path for path in hashes if path.exists()), key=hashes.get)
    assert documents(make(folder, tmp_path / "out", valid=0.03), "valid") == [nearest.read_text()]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text(i)}) + "\n" for i in range(5)))
    assert make(tmp_path / "x.jsonl", tmp_path / "out2", valid=0.0001).meta["counts"]["valid"]["documents"] == 1


def test_membership_does_not_depend_on_the_other_documents(folder, tmp_path):
    before = set(documents(make(folder, tmp_path / "a", valid=0.3), "valid"))
    (folder / "a" / "zz.txt").write_text(text(99))
    after = set(documents(make(folder, tmp_path / "b", valid=0.3), "valid"))
    assert 3 < len(before) < 20 and after - {text(99)} == before


def test_the_end_of_one_of_a_few_long_documents_is_held_out(tmp_path):
    (tmp_path / "c").mkdir()
    for name in "abc":
        (tmp_path / "c" / f"{name}.txt").write_text("".join(f"{name} line {i}\n" for i in range(1000)))
    prepared = make(tmp_path / "c", tmp_path / "out", valid=0.05)
    train, [valid] = documents(prepared, "train"), documents(prepared, "valid")
    assert len(train) == 3 and 0.04 < len(valid) / sum(map(len, [*train, valid])) < 0.06
    assert any(short + valid == "".join(f"{short[0]} line {i}\n" for i in range(1000)) for short in train)


@pytest.mark.parametrize("kind", ["txt", "gz", "zip"])
def test_the_end_of_an_only_document_is_held_out(tmp_path, kind):
    whole = "".join(f"line {i}\n" for i in range(1000))
    path = tmp_path / {"txt": "x.txt", "gz": "x.txt.gz", "zip": "x.zip"}[kind]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.txt", whole)
    else:
        path.write_bytes(gzip.compress(whole.encode()) if kind == "gz" else whole.encode())
    prepared = make(path, tmp_path / "out", valid=0.1)
    [train], [valid] = documents(prepared, "train"), documents(prepared, "valid")
    assert train + valid == whole and train.endswith("\n") and 0.05 < len(valid) / len(whole) < 0.11


@pytest.mark.parametrize("packing", [str, None])
@pytest.mark.parametrize(
    "lengths", [[100_000], [100_000, *[300] * 11], [300] * 9, [20_000] * 3, [5000] * 60, [9, 90_000]]
)
def test_the_share_held_out_is_of_text_however_long_documents_are(lengths, packing, tmp_path):
    """packing: str: a document a file; None: all in one jsonl."""
    texts = [f"{i:03}" + text(i, max(lengths) // 4)[: length - 3] for i, length in enumerate(lengths)]
    if packing:
        (tmp_path / "in").mkdir()
        for i, whole in enumerate(texts):
            (tmp_path / "in" / f"{i}.txt").write_text(whole)
    else:
        (tmp_path / "in").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        (tmp_path / "in").rename(tmp_path / "in.jsonl")
    for valid in (0.05, 0.2):
        prepared = make(tmp_path / ("in" if packing else "in.jsonl"), tmp_path / f"out{valid}", valid=valid)
        train, held = documents(prepared, "train"), documents(prepared, "valid")
        share = sum(map(len, held)) / sum(lengths)
        assert valid / 2 <= share <= 2 * valid
        whole = sorted(t for t in train if t in texts)
        [split] = [t for t in train if t not in texts] or [""]  # one document at most is split, and nothing is lost
        ends = [h for h in held if h not in texts]
        assert sorted([*whole, *([split + ends[0]] if split else []), *(h for h in held if h in texts)]) == texts


def test_of_a_large_corpus_long_documents_are_split_and_short_ones_chosen_by_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "SURVEYED", 100_000)
    texts = [text(i, 100) for i in range(600)] + [text(i, 20_000) for i in range(600, 603)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    prepared = make(tmp_path / "in.jsonl", tmp_path / "out", valid=0.1)
    train, held = set(documents(prepared, "train")), set(documents(prepared, "valid"))
    for long in texts[600:]:
        [end] = [h for h in held if long.endswith(h) and h not in texts]
        assert long[: -len(end)] in train and 0.09 < len(end) / len(long) < 0.1
    assert 40 < sum(t in held for t in texts[:600]) < 80
    assert "of those above" in summary(prepared.meta)


def test_one_line_of_megabytes_can_teach_a_vocabulary(tmp_path):
    (tmp_path / "line.txt").write_text(" ".join(text(i).replace("\n", "") for i in range(900)))
    assert (tmp_path / "line.txt").stat().st_size > 1 << 20
    assert make(tmp_path / "line.txt", tmp_path / "out", tokenizer="sentencepiece:400").tokenizer.vocab_size == 400
    (tmp_path / "no_spaces.txt").write_text(
        "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x4E30, 600_000)))
    )
    prepared = make(tmp_path / "no_spaces.txt", tmp_path / "out2", tokenizer="sentencepiece:420")
    assert prepared.meta["invalid_utf8"]["bytes"] == 0 and prepared.tokenizer.vocabulary.text_ids


def test_a_share_that_holds_out_nothing_is_told_at_once(tmp_path):
    (tmp_path / "one.txt").write_text("one line and no more of it\n")
    with pytest.raises(UserError, match="valid=0.0001 holds out nothing of 27 bytes: raise it, or set it to 0"):
        make(tmp_path / "one.txt", tmp_path / "out", valid=1e-4, window=8)


def test_no_validation(folder, tmp_path):
    prepared = make(folder, tmp_path / "out", valid=0.0)
    assert len(documents(prepared, "train")) == 30
    with pytest.raises(UserError, match="has no valid windows: prepare it with --valid above 0"):
        prepared.source("valid")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"window": 100_000}, r"\d+ training documents hold \d+ tokens, fewer than one window of 100000: shorten"),
        ({"valid_glob": "c/*"}, r"no file or split matches valid_glob='c/\*'; it has a/00.txt, a/02.txt, .*\.\.\."),
        ({"exclude": "*"}, r"exclude='\*' leaves nothing"),
    ],
)
def test_corpora_that_are_too_small(folder, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        make(folder, tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "meta.json").exists()
    make(folder, tmp_path / "out")  # the mended settings may go to the same place


# ------------------------------------------------------------------------------------ workers, interruption, resumption


@pytest.fixture
def many_jobs(monkeypatch):
    monkeypatch.setattr(P, "JOB_BYTES", 8000)


def test_same_bytes_whatever_the_workers(folder, tmp_path, many_jobs):
    one, two = (make(folder, tmp_path / f"w{n}", workers=n, tokenizer="sentencepiece:400") for n in (1, 2))
    assert len(one.meta["shards"]["train"]) >= 5
    assert files(one.directory) == files(two.directory)
    assert one.fingerprint == two.fingerprint


def test_what_the_tokenizer_does_not_know_is_told(tmp_path):
    """A vocabulary of other letters, and words too long for WordPiece: ids of nothing, which a loss does not mind."""
    (tmp_path / "a.txt").write_text("some of these words in a row " * 99)
    make(tmp_path / "a.txt", tmp_path / "a", tokenizer="wordpiece:133")
    known = dict(tokenizer=str(tmp_path / "a" / "tokenizer"))
    (tmp_path / "b.txt").write_text("some of these words in a r\u00f8w " * 99)
    prepared = make(tmp_path / "b.txt", tmp_path / "b", **known)
    counts = [prepared.meta["counts"][split] for split in ("train", "valid")]
    assert sum(c["unknown"] for c in counts) == 99
    total = sum(c["tokens"] for c in counts)
    assert f"unknown    99 of the {total:,} tokens ({9900 / total:.2g} %) stand for what it" in summary(prepared.meta)
    (tmp_path / "c.txt").write_text("\u044f \u0442\u0443\u0442 " * 99)
    with pytest.raises(
        UserError, match=r"of its .* tokens are unknown to the tokenizer .*: take one that is of such te"
    ):
        make(tmp_path / "c.txt", tmp_path / "c", **known)
    genome = "".join(np.random.default_rng(0).choice(list("acgt"), 30_000))
    (tmp_path / "d.txt").write_text(genome)
    with pytest.raises(UserError, match=r"of its . tokens are unknown to the tokenizer wordpiece:300: take one"):
        make(tmp_path / "d.txt", tmp_path / "d", tokenizer="wordpiece:300")
    assert make(tmp_path / "d.txt", tmp_path / "e", tokenizer="bpe:400").meta["counts"]["train"]["windows"]


def test_data_that_cannot_be_used_leave_nothing_behind(tmp_path, monkeypatch):
    """Of a failed preparation nothing is kept that would refuse the mended one: other settings, other data."""
    monkeypatch.setattr(P, "JOB_BYTES", 1)
    (tmp_path / "in").mkdir()
    for k in range(3):
        (tmp_path / "in" / f"{k}.txt").write_bytes(b"some words " * 99 + b"\xff" * (k == 2))
    with pytest.raises(UserError, match=r"2.txt is not UTF-8"):
        make(tmp_path / "in", tmp_path / "out", invalid_utf8="refuse")
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(("done-", "plan"))]
    assert make(tmp_path / "in", tmp_path / "out").meta["invalid_utf8"]["bytes"] == 1


def test_resumes_after_an_interruption(folder, tmp_path, many_jobs, monkeypatch):
    whole = files(make(folder, tmp_path / "whole").directory)
    out, job, calls = tmp_path / "out", WINDOWS.job, []

    def fails_at_the_fourth(*args):
        calls.append(args[5])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return job(*args)

    monkeypatch.setattr(data, "WINDOWS", WINDOWS._replace(job=fails_at_the_fourth))
    with pytest.raises(KeyboardInterrupt):
        make(folder, out)
    assert not (out / "meta.json").exists() and len(list(out.glob("done-*"))) == 3
    with pytest.raises(UserError, match="holds no prepared corpus"):
        PreparedText(out)
    plan = (out / "plan.json").read_bytes()
    for cut in (plan[:40], b"[]"):
        (out / "plan.json").write_bytes(cut)
        with pytest.raises(UserError, match=r"plan.json is damaged: delete .*, and prepare again"):
            make(folder, out)
    (out / "plan.json").write_bytes(plan)
    # One finished shard is damaged, one half-written file lies about.
    damaged, other = sorted(out.glob("train-*"))[1], len(list(out.glob("done-*")))
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    assert other == 3
    (out / sorted(name for name in whole if name.startswith("train-"))[5]).with_suffix(".array_record.tmp").write_bytes(
        b"half"
    )
    calls.clear()
    monkeypatch.setattr(data, "WINDOWS", WINDOWS._replace(job=lambda *args: calls.append(args[5]) or job(*args)))
    make(folder, out)
    jobs = int(damaged.name.split("-of-")[1][:5])
    assert jobs > 5 and calls == [1, *range(3, jobs)]
    assert files(out) == whole
    make(folder, out)
    assert len(calls) == jobs - 2, "a prepared directory is left alone"


def test_an_unfinished_directory_of_other_settings_is_refused(folder, tmp_path, many_jobs, monkeypatch):
    out, job = tmp_path / "out", WINDOWS.job

    def fails_at_the_second(*args):
        if args[5] == 1:
            raise KeyboardInterrupt
        return job(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "WINDOWS", WINDOWS._replace(job=fails_at_the_second))
        make(folder, out)
    before = files(out)
    with pytest.raises(
        UserError, match=r"holds another corpus \(window=32 there, 64 now\): give another directory, or"
    ):
        make(folder, out, window=64)
    (folder / "a" / "00.txt").write_text("changed")
    with pytest.raises(UserError, match=r"was made from .* as it was then, and that has changed"):
        make(folder, out)
    assert files(out) == before


def test_killed_preparation_resumes_to_the_same_bytes(folder, tmp_path):
    for i in range(300):  # long enough to be killed in the middle
        (folder / f"{i}.md").write_text(text(i) * 20)
    whole, out = make(folder, tmp_path / "whole", 256).directory, tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "launch.prepare",
        f"--source={folder}",
        "--window=256",
        "--workers=2",
        f"--out={out}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(out.glob("done-*")):
        time.sleep(0.002)
        assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "meta.json").exists()
    make(folder, out, 256)
    assert files(out) == files(whole)


def test_a_full_disk_leaves_nothing_that_looks_whole(folder, tmp_path):
    rng = np.random.default_rng(0)
    (folder / "noise.txt").write_text(rng.integers(33, 126, 500_000, dtype=np.uint8).tobytes().decode())
    code = (
        "import sys, pathlib; from t5like.data import TextData; from t5like.prepare import prepare\n"
        f"prepare(TextData({str(folder)!r}, window=64), pathlib.Path({str(tmp_path / 'out')!r}), 1, False)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True)
    assert re_last(done.stderr).endswith(
        "out: cannot be written (File too large): free some space, or give another directory; what is finished is kept"
    )
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert not any(n.startswith(("train-", "valid-", "done-", "meta")) for n in left), left
    make(folder, tmp_path / "out", window=64)


def re_last(stderr):
    return stderr.strip().splitlines()[-1]


def test_directories_that_are_not_ours(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/out: cannot be written \(Not a directory\)"):
        make(folder, tmp_path / "file" / "out")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"busy holds other files \(thesis.tex\), no prepared corpus"):
        make(folder, tmp_path / "busy")
    assert os.listdir(tmp_path / "busy") == ["thesis.tex"]


def test_one_preparation_at_a_time(folder, tmp_path):
    out = tmp_path / "out"
    with P._own(out), pytest.raises(UserError, match="is being prepared by another process: wait"):
        make(folder, out)
    make(folder, out)


# ----------------------------------------------------------------------------------------------------------- the recipe


def test_recipe_builds_once_and_reads_prepared_directories(folder, tmp_path, capsys):
    recipe = TextData(str(folder))
    built = recipe.build(tmp_path / "data", window=40, progress=False)
    assert built.window == 40 and built.meta["settings"]["window"] == 40
    shutil.move(folder, tmp_path / "gone")  # a run keeps the text it began with
    assert recipe.build(tmp_path / "data", window=40).fingerprint == built.fingerprint
    direct = TextData(str(tmp_path / "data")).build(tmp_path / "unused", window=30)
    assert direct.fingerprint == built.fingerprint and not (tmp_path / "unused").exists()
    with pytest.raises(UserError, match=r"holds windows of 40 tokens and the objective reads 50: .*--window=50"):
        TextData(str(tmp_path / "data")).build(tmp_path / "unused", window=50)
    with pytest.raises(UserError, match=r"holds another corpus \(window=40 there, 50 now\)"):
        recipe.build(tmp_path / "data", window=50)
    with pytest.raises(UserError, match=r"was prepared with tokenizer='bytes', not 'my.model': set TextData.tok"):
        TextData(str(tmp_path / "data"), tokenizer="my.model").build(tmp_path / "unused", window=40)
    with pytest.raises(UserError, match=r"was prepared with window=40, not 50"):
        TextData(str(tmp_path / "data"), window=50).build(tmp_path / "unused", window=40)
    # What a run file would learn, or cut shorter, gives way to what the directory holds, and that is told.
    recipe = TextData(str(tmp_path / "data"), tokenizer="sentencepiece:500", window=30)
    assert recipe.build(tmp_path / "unused", window=30).fingerprint == built.fingerprint
    assert recipe.vocabulary().size == built.tokenizer.vocab_size
    told = capsys.readouterr().err
    assert "brings its tokenizer, 'bytes': 'sentencepiece:500' is not learnt" in told
    assert "brings windows of 40 tokens, more than 30" in told
    # A run file's settings of how to prepare do not stand in the way, nor does another way to name as many ids.
    TextData(str(tmp_path / "data"), tokenizer="sentencepiece:359", valid=0.2).build(tmp_path / "unused", window=40)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"valid": 1.0}, r"valid=1.0: the held-out share of documents must lie in \[0, 1\)"),
        ({"invalid_utf8": "ignore"}, "invalid_utf8='ignore': choose 'replace' or 'refuse'"),
        ({"window": 1}, "window=1: a window holds at least 2 tokens"),
    ],
)
def test_recipe_errors(settings, message):
    with pytest.raises(UserError, match=message):
        TextData("stdlib", **settings)


def test_a_source_is_its_content_not_its_path_or_its_times(folder, tmp_path, monkeypatch):
    built = TextData(str(folder)).build(tmp_path / "data", window=40, progress=False, workers=1)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    monkeypatch.chdir(tmp_path)
    for other in ("corpus", "./copy", str(copy)):
        again = TextData(other).build(tmp_path / "data", window=40, progress=False, workers=1)
        assert again.fingerprint == built.fingerprint
        P.prepare(TextData(other, window=40), tmp_path / "data", workers=1, progress=False)
    next(copy.rglob("*.txt")).write_text("changed")
    for call in (lambda r: r.build("data", window=40), lambda r: P.prepare(r, "data", 1, False)):
        with pytest.raises(
            UserError, match=r"data was made from .*corpus as it was then, and \./copy holds something else"
        ):
            call(TextData("./copy", window=40))


@pytest.mark.parametrize("length", [32, 12, 31, 7])
def test_all_of_longer_held_out_windows_is_evaluated(folder, tmp_path, length):
    recipe = TextData(str(folder), window=32, valid=0.2)
    whole = recipe.build(tmp_path / "data", window=32, progress=False, workers=1)
    cut = recipe.build(tmp_path / "data", window=length, progress=False)
    kept = lambda prepared, name: np.concatenate([w[name][w["segments"] > 0] for w in windows(prepared, "valid")])
    np.testing.assert_array_equal(kept(cut, "tokens"), kept(whole, "tokens"))
    assert all(w["tokens"].shape == w["segments"].shape == (length,) for w in windows(cut, "valid"))
    assert all(w["segments"][0] for w in windows(cut, "valid")), "none is padding alone"
    source = pickle.loads(pickle.dumps(cut.source("valid")))
    assert source.name(len(source) - 1).startswith(whole.source("valid").name(len(whole.source("valid")) - 1))
    assert len(cut.source("train")) == len(whole.source("train"))
    read = Dataset(cut.source("valid"), NextTokenWindows(BYTES, length), 8, train=False)
    batches = [read.batch(step) for step in range(len(read))]
    predicted = sum((b["weights"] * b["mask"][:, None]).sum() for b in batches)
    assert predicted == len(kept(whole, "tokens"))


def test_recipe_without_a_window(folder, tmp_path):
    with pytest.raises(UserError, match="window is not set"):
        TextData(str(folder)).build(tmp_path / "out")


def test_prepared_directory_must_be_whole(folder, tmp_path):
    prepared = make(folder, tmp_path / "out")
    shard = tmp_path / "out" / prepared.meta["shards"]["train"][0]["file"]
    whole = files(tmp_path / "out")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"array_record has \d+ bytes instead of \d+: run launch.prepare into .*out again"
    ):
        PreparedText(tmp_path / "out")
    shard.unlink()
    with pytest.raises(UserError, match=r"array_record is missing: run launch.prepare"):
        PreparedText(tmp_path / "out")
    make(folder, tmp_path / "out")  # prepare mends it
    assert files(tmp_path / "out") == whole
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    (tmp_path / "out" / "meta.json").write_text(json.dumps({**meta, "format": "paradigm-text-0"}))
    with pytest.raises(UserError, match="is of format 'paradigm-text-0', this version reads 'paradigm-text-1'"):
        PreparedText(tmp_path / "out")
    for spoilt, said in (("{", "meta.json cannot be read"), ("[]", "meta.json is of format None, this version reads")):
        (tmp_path / "out" / "meta.json").write_text(spoilt)
        with pytest.raises(UserError, match=said):
            PreparedText(tmp_path / "out")


def test_vocabulary_is_learnt_from_training_text_alone(folder, tmp_path):
    (folder / "a" / "00.txt").write_text("ΩΩΩ ΩΩΩΩ ΩΩ " * 300)
    prepared = make(folder, tmp_path / "out", valid_glob="a/00.txt", tokenizer="sentencepiece:400")
    assert prepared.tokenizer.vocab_size == 400
    pieces = prepared.tokenizer.encode("Ω")
    assert len(pieces) == len("Ω".encode()), "a character seen only in validation falls back to bytes"
    assert prepared.meta["vocab_size"] == 400 and prepared.meta["dtype"] == "<u2"


def test_mixture_of_texts(folder, tmp_path):
    parts = [TextData(str(folder / name)) for name in "ab"]
    mixed = TextMixture(parts, [Linear(peak=1.0, final=0.0, total_steps=100), 1.0]).build(
        tmp_path / "data", 40, progress=False, workers=1
    )
    data = Dataset(mixed.source("train"), NextTokenWindows(BYTES, 40), 8, seed=1)
    first = PreparedText(tmp_path / "data" / "0")
    of_first = {w["tokens"].tobytes() for w in windows(first, "train")}
    share = [np.mean([t.tobytes() in of_first for t in data.batch(step)["targets"]]) for step in (0, 100, 500)]
    assert share == [0.5, 0, 0] and mixed.tokenizer == first.tokenizer
    valid = Dataset(mixed.source("valid"), NextTokenWindows(BYTES, 40), 8, train=False)
    assert valid.examples == sum(len(p.source("valid")) for p in mixed.parts)
    one, two = (p.source("valid") for p in mixed.parts)
    both = Subset(mixed.source("valid"), np.array([0, len(one), len(one) + len(two) - 1]))  # as evaluators read them
    wanted = [one[0], two[0], two[len(two) - 1]]
    for found in (list(map(both.__getitem__, range(3))), both.__getitems__(range(3))):
        assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(found, wanted))
    assert both.name(1) == two.name(0) and len(mixed.source("valid")) == valid.examples
    with pytest.raises(IndexError):
        mixed.source("valid")[valid.examples]
    one_without = TextMixture((parts[0], TextData(str(folder / "b"), valid=0.0)), (1, 1))
    assert len(one_without.build(tmp_path / "c", 40, progress=False, workers=1).source("valid").sources) == 1
    with pytest.raises(UserError, match="a mixture of 2 sources has 1 weights"):
        TextMixture(parts, [1]).build(tmp_path / "data", 40, progress=False).source()
    other = TextData(str(folder / "b"), tokenizer="sentencepiece:400")
    with pytest.raises(UserError, match=r"are not of one tokenizer: prepare the first alone, and .*0/tokenizer$"):
        TextMixture((parts[0], other), (1, 1)).build(tmp_path / "d", 40, progress=False, workers=1)


@pytest.mark.parametrize("prepare_example", [SpanNoise(BYTES, 28), NextTokenWindows(BYTES, 32)])
def test_dataset_over_windows_is_pure(folder, tmp_path, prepare_example):
    prepared = make(folder, tmp_path / "out")
    data = Dataset(prepared.source("train"), prepare_example, 8, seed=3)
    again = Dataset(
        pickle.loads(pickle.dumps(PreparedText(tmp_path / "out").source("train"))), prepare_example, 8, seed=3
    )
    for step in (0, 7, 1000):
        for name, array in data.batch(step).items():
            np.testing.assert_array_equal(array, again.batch(step)[name])
    assert data.fingerprint == again.fingerprint
    valid = Dataset(prepared.source("valid"), prepare_example, 8, train=False)
    assert sum(valid.batch(s)["mask"].sum() for s in range(len(valid))) == len(prepared.source("valid"))


def test_a_damaged_record_is_replaced_and_named(folder, tmp_path):
    prepared = make(folder, tmp_path / "out", window=512, valid=0.0)
    [shard] = prepared.meta["shards"]["train"]
    path = pathlib.Path(tmp_path / "out" / shard["file"])
    raw = bytearray(path.read_bytes())
    raw[20_000] ^= 0xFF
    path.write_bytes(raw)
    source = PreparedText(tmp_path / "out").source("train")
    data = Dataset(source, NextTokenWindows(BYTES, 512), len(source))
    batch, problems = data.read(0)
    assert len(problems) == 1 and f"{path.name} window " in problems[0].record
    assert batch["mask"].all() and batch["targets"].shape == (len(source), 512)
