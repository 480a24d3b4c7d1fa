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
