"""A run meets data of another vocabulary of the same size: refused, and both are named."""

import pytest

from launch.evaluate import evaluate
from launch.run import loop, registry
from paradigm.errors import UserError
from t5like.data import TextData
from t5like.prepare import prepare
from tests.t5like.test_tokenizer import CORPUS

CONFIG = """
Experiment.objective = @NextToken()
Experiment.data = @TextData()
Experiment.optimizer = @AdamW()
Experiment.total_steps = 1
Experiment.batch_size = 8
Experiment.eval_batches = 1
NextToken.model = @gpt()
NextToken.length = 32
gpt.size = 'tiny'
gpt.layers = 1
gpt.d_model = 16
gpt.heads = 2
AdamW.learning_rate = 0.001
"""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two texts, each with a vocabulary of its own, and the second text in the first one's."""
    root = tmp_path_factory.mktemp("corpora")
    for name, text in zip("ab", (CORPUS[0], "\n".join(f"{w} und {w[::-1]}" for w in CORPUS[0].split()))):
        (root / f"{name}.txt").write_text(text * 2)
    for name, source, tokenizer in (
        ("a", "a", "sentencepiece:480"),
        ("b", "b", "sentencepiece:480"),
        ("b_as_a", "b", str(root / "a" / "tokenizer")),
    ):
        recipe = TextData(str(root / f"{source}.txt"), tokenizer=tokenizer, window=32, valid=0.3)
        prepare(recipe, root / name, workers=1, progress=False)
    return root


def train(corpora, name, workdir, **how):
    run = registry.parse_text(CONFIG, [f"TextData.source = '{corpora / name}'"])
    return loop.train(run, workdir, config=registry.operative_config(), **how)


def test_a_run_and_data_of_another_vocabulary(corpora, tmp_path):
    train(corpora, "a", tmp_path / "run")
    on = lambda name: evaluate(tmp_path / "run", gin_params=[f"TextData.source = '{corpora / name}'"])
    assert on("b_as_a")[0] == 1
    with pytest.raises(
        UserError, match=r"another vocabulary: the run has 480 ids, sentence.*, and the data .*b has 480 ids"
    ):
        on("b")
    with pytest.raises(
        UserError, match=r"another vocabulary: .*run at step 1 has 480 ids.*, and the data in .* has 480 ids"
    ):
        train(corpora, "b", tmp_path / "next", init_from=str(tmp_path / "run"))
    assert train(corpora, "b_as_a", tmp_path / "good", init_from=str(tmp_path / "run")).step == 1


def test_a_directory_of_the_transformers_library_with_a_tokenizer_is_compared_too(corpora, tmp_path):
    """By the ids that it gives to text: its files do not say how many sentinels the data have."""
    from launch.run import initial, pretrained
    from t5like.tokenizers import get_tokenizer, load_tokenizer

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        model = next(path for path in (corpora / name / "tokenizer").iterdir() if path.suffix == ".model")
        (tmp_path / name / "spiece.model").write_bytes(model.read_bytes())
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    ours = load_tokenizer(corpora / "a" / "tokenizer")
    assert pretrained.tokenizer(tmp_path / "none") is None
    initial.same_ids(pretrained.tokenizer(tmp_path / "a"), ours, "weights", "the data")
    initial.same_ids(get_tokenizer(str(tmp_path / "a" / "spiece.model"), extra_ids=7), ours, "weights", "the data")
    initial.same_ids(pretrained.tokenizer(tmp_path / "b"), None, "weights", "pictures")
    with pytest.raises(
        UserError, match="another vocabulary: the tokenizer in weights gives text other ids than that of"
    ):
        initial.same_ids(pretrained.tokenizer(tmp_path / "b"), ours, "weights", "the data")
