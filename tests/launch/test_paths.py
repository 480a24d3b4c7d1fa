"""A ~ in a path is the home directory, whichever flag or setting the path is given by."""

import json
import shutil

import pytest

from launch import convert
from launch.run import loop, registry
from paradigm.errors import UserError
from t5like import hf
from t5like.data import TextData
from t5like.prepare import prepare
from t5like.tokenizers import ByteTokenizer, get_tokenizer, load_tokenizer, vocabulary_of
from tests.launch import small
from tests.multimodal import pairs
from tests.t5like.test_weights import MODELS, random_params


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # and nothing called ~


def test_what_prepare_is_given(home):
    (home / "corpus").mkdir()
    for i in range(3):
        (home / "corpus" / f"{i}.txt").write_text(f"document {i} " * 50)
    ByteTokenizer(7).save(home / "tokenizer")
    recipe = TextData(source="~/corpus", tokenizer="~/tokenizer", window=16)
    meta = prepare(recipe, "~/out", workers=1, progress=False)
    assert json.loads((home / "out" / "meta.json").read_text()) == meta
    assert meta["vocab_size"] == load_tokenizer("~/out/tokenizer").vocab_size == 266
    assert vocabulary_of("~/tokenizer") == get_tokenizer("~/tokenizer").vocabulary


def test_what_train_is_given(home):
    shutil.copy(registry.SHIPPED / "runs" / "demo.gin", home / "run.gin")
    assert registry.parse(["~/run.gin"]) == registry.parse(["runs/demo.gin"])
    (home / "again.gin").write_text("include '~/run.gin'\n")  # found, and hence refused for what it says
    with pytest.raises(UserError, match="includes others: includes go one deep"):
        registry.parse(["~/again.gin"])
    loop.train(small.experiment(total_steps=2), "~/donor")
    loop.train(small.experiment(total_steps=2, seed=1), "~/run", init_from="~/donor")
    assert (home / "run" / "checkpoints" / "2").is_dir()


def test_what_convert_is_given(home):
    hf.write("~/weights", {"model": MODELS["llama"]}, {"model": random_params(MODELS["llama"])})
    convert.to_checkpoint("~/weights", "~/back")
    assert (home / "back" / "checkpoints" / "0").is_dir()


def test_tables_and_their_pictures(home):
    pairs.plain(home / "pictures").rename(home / "pairs.tsv")
    assert len(pairs.records(pairs.opened("tsv:~/pairs.tsv", images=["~/pictures"]))) > 0
