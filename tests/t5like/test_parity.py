"""Logits and loss of the transformers library's models, reproduced by ours from the same weights (tests/parity)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from t5like import hf
from t5like.decode import ModelAlone, Sampling, beam_search, decode
from tests.parity import cases, make

TOLERANCE = 1e-4
REPEATING = (
    "bart",
    "mbart",
    "t5_v1_0",
    "gpt2_silu",
    "llama_yarn",
    "qwen3",
)  # random weights that say one thing again and again


@dataclasses.dataclass(frozen=True)
class NoEos(Sampling):
    """Greedy, but never eos."""

    eos: int = 1

    def choose(self, logits, keys):
        return super().choose(logits.at[:, self.eos].set(-jnp.inf), keys)


@pytest.fixture(scope="module", params=list(cases.CONFIGS))
def golden(request):
    return request.param, cases.load(request.param)


@pytest.fixture(scope="module")
def ours(golden, tmp_path_factory):
    """(modules, params) read from the files that the reference was run on."""
    case, stored = golden
    return hf.read(make.released(stored, tmp_path_factory.mktemp(case)))


def test_logits_and_loss(golden, ours):
    _, stored = golden
    logits, loss, scored = make.run(*ours, stored["inputs"])
    assert scored.sum() > 30
    assert np.abs(logits - stored["logits"])[scored].max() < TOLERANCE
    assert abs(loss - stored["loss"]) < TOLERANCE


def test_greedy_decoding(golden, ours):
    """With our cache, the tokens that the library generates with its own (eos forbidden: it would end too soon)."""
    case, stored = golden
    if cases.masked(case):
        pytest.skip("an encoder decodes nothing")
    modules, params = ours
    given = {name: x.astype(np.int32) for name, x in cases.prompt(case).items()}
    prompts, more = given["input_ids"], {}
    if "decoder_start_token_id" in stored["config"]:
        more = {"inputs": prompts, "input_segments": given["attention_mask"]}
        prompts = np.full((len(prompts), 1), stored["config"]["decoder_start_token_id"], np.int32)
    lengths, keys = np.full(len(prompts), prompts.shape[1], np.int32), jax.random.split(jax.random.key(0), len(prompts))
    variables = {"params": params}
    tokens = decode(
        ModelAlone(modules["model"]),
        variables,
        prompts,
        lengths,
        keys,
        cases.NEW,
        NoEos(eos=stored["config"].get("eos_token_id", 1)),
        -1,
        **more,
    )
    assert np.array_equal(tokens, stored["generated"])
    assert case in REPEATING or len(np.unique(tokens)) > 3


# A search is one code for all families, whose caches the greedy texts go through.
SEARCHED = ("gpt2", "mistral", "t5_v1_1", "bart")


@pytest.mark.parametrize(
    "golden",
    [pytest.param(c, marks=[pytest.mark.slow] * (c not in SEARCHED)) for c in cases.CONFIGS if not cases.masked(c)],
    indirect=True,
    scope="module",
)
def test_beam_search(golden, ours):
    """The texts and scores that the library's generate finds with several beams, ends and all of them included."""
    case, stored = golden
    modules, params = ours
    given = {name: x.astype(np.int32) for name, x in cases.prompt(case).items()}
    prompts, more = given["input_ids"], {}
    if "decoder_start_token_id" in stored["config"]:
        more = {"inputs": prompts, "input_segments": given["attention_mask"]}
        prompts = np.full((len(prompts), 1), stored["config"]["decoder_start_token_id"], np.int32)
    lengths, eos = np.full(len(prompts), prompts.shape[1], np.int32), stored["config"].get("eos_token_id", 1)
    how = cases.NEW, cases.BEAMS["num_beams"], cases.BEAMS["length_penalty"], eos
    variables = {"params": params}
    tokens, scores = beam_search(ModelAlone(modules["model"]), variables, prompts, lengths, *how, **more)
    with np.load(cases.HERE / "beams.npz") as wanted:
        assert np.array_equal(tokens.reshape(-1, cases.NEW), wanted[case])
        np.testing.assert_allclose(np.ravel(scores), wanted[f"{case}_scores"], atol=1e-4)


def test_padding_is_masked(golden, ours):
    """Without the mask the padded row moves and the full row does not: the goldens show whether the mask is read."""
    _, stored = golden
    inputs = dict(stored["inputs"], attention_mask=np.ones_like(stored["inputs"]["attention_mask"]))
    logits, _, scored = make.run(*ours, inputs)
    difference = np.abs(logits - stored["logits"])[scored.nonzero()].reshape(scored.sum(), -1).max(1)
    difference = [difference[scored.nonzero()[0] == row].max() for row in range(2)]
    assert difference[0] < TOLERANCE < 1e-2 < difference[1]


def test_every_weight_matters(golden, ours):
    """A leaf that the outputs could not show would be a leaf that nobody compared."""
    _, stored = golden
    modules, params = ours
    base, _, scored = make.run(modules, params, stored["inputs"])
    for name, _ in trees.named_leaves(params):
        if name.endswith("key/bias"):
            continue  # adds the same to all logits of a query, which softmax takes away
        moved = trees.named_map(lambda n, x, name=name: x * 1.5 + 0.1 if n == name else x, params)
        changed = np.abs(make.run(modules, moved, stored["inputs"])[0] - base)[scored].max()
        assert changed > TOLERANCE, name
