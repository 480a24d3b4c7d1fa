"""CoCa, CapPa and SimVLM as their papers write them, who sees what, and captions by the cache as without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal import captions
from multimodal.captioners import cappa_text, coca_text, single_stream
from multimodal.captions import BigramCaptions, Captions, caption
from paradigm.combine import Sum
from paradigm.errors import UserError
from paradigm.objective import EVALUATION, Context
from t5like.models import gpt
from t5like.objectives import NextToken
from t5like.tokenizers import ByteTokenizer
from tests import contract
from tests.compiled import compiled
from tests.multimodal import tiny
from tests.multimodal.pairs import opened, plain
from tests.vision.tiny import Opened, params
from vision.resnet import resnet

ALL = {"coca": tiny.coca(), "cappa": tiny.cappa(), "simvlm": tiny.simvlm(), "magma": tiny.magma(dropout=0.0)}
everyone = pytest.mark.parametrize("name", ALL)
TRAIN = Context(jnp.int32(0))
ROWS = 3  # that are real: a loop's program grows with the square of them
BATCH = tiny.captions_of(masked=8 - ROWS)(4)  # of whose rows one is read as a prefix, as drawn


def logits_of(objective, variables, encoded, tokens, **how):
    hidden = objective.apply(objective.reader, variables, encoded, tokens, method="decode", **how)[0]
    return objective.apply(objective.reader, variables, hidden, method="score")[0]


def spelt_out(logits, tokens, first):
    """(sum, number) of -log p of every token from `first` [B] to its row's end id, by a loop over rows and places."""
    total, count = 0.0, 0
    for row in range(ROWS):  # the others are padding
        for t in range(1, tokens.shape[1]):
            if t - 1 >= int(first[row]):
                z = logits[row, t - 1]
                total, count = total - z[tokens[row, t]] + jnp.log(jnp.sum(jnp.exp(z))), count + 1
            if tokens[row, t] == 1:
                break
    return total, count


@everyone
def test_the_loss_is_the_papers(name):
    """In value and gradient, in training: which examples are parallel, and how long a prefix is, as they are drawn."""
    objective, batch = ALL[name], BATCH
    draw = lambda what: np.array([jax.random.uniform(key) for key in TRAIN.keys(what, batch["index"])])
    first = np.zeros(8, int)
    if name == "simvlm":
        lengths = np.argmax(batch["tokens"] == 1, 1)
        lengths[lengths == 0] = tiny.LENGTH - 1
        first = np.floor(draw("prefix") * lengths).astype(int)
        assert first[:ROWS].any()
    how = {"cappa": {"parallel": draw("parallel") < 0.75}, "simvlm": {"prefix": first + 1}}.get(name, {})

    @jax.jit
    @jax.value_and_grad
    def slow(p):
        variables = {"params": p}
        images = objective.views[0](batch["image"], batch["aspect"], TRAIN.keys("view/0", batch["index"]))
        logits = logits_of(objective, variables, objective.see(variables, images), batch["tokens"][:, :-1], **how)
        total, count = spelt_out(logits, batch["tokens"], first)
        loss = total / count
        if name == "coca":
            image, text = (
                x[:ROWS]
                for x in (objective.embed_images(variables, images), objective.embed_texts(variables, batch["tokens"]))
            )
            z = jnp.exp(p["log_scale"]) * image @ text.T
            rows = [
                jnp.log(jnp.exp(z[i]).sum()) - z[i, i] + jnp.log(jnp.exp(z[:, i]).sum()) - z[i, i] for i in range(ROWS)
            ]
            loss = 2 * loss + sum(rows) / 2 / ROWS
        return loss

    fast = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, batch, TRAIN).value()))
    (value, slope), (wanted, wanted_slope) = fast(params(objective)), slow(params(objective))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 2e-5)


def test_who_sees_what():
    """A token sees those before it and the picture; one of a parallel caption the picture alone."""
    rows = np.tile(np.int32([0, 7, 8, 9, 10, 11, 1]), (1, 1))
    for name, objective in ALL.items():
        variables = {"params": params(objective)}
        encoded = compiled(objective.see, variables, compiled(objective.view, tiny.captions_of(1)(0)))
        run = jax.jit(lambda e, t, o=objective, v=variables: logits_of(o, v, e, t))
        plain_ = run(encoded, rows)
        other = rows.copy()
        other[0, 3] = 20
        changed = np.any(run(encoded, other) != plain_, axis=-1)[0]
        assert changed.tolist() == [False] * 3 + [True] * 4, name
        assert np.any(run(encoded + 1, rows)[0, 0] != plain_[0, 0]), name
        how = {"cappa": {"parallel": jnp.array([True])}, "simvlm": {"prefix": jnp.array([5])}}.get(name)
        if how:
            run = jax.jit(lambda e, t, o=objective, v=variables, h=how: logits_of(o, v, e, t, **h))
            changed = np.any(run(encoded, other) != run(encoded, rows), axis=-1)[0]
            assert changed.all() == (name == "simvlm") and changed.any() == (name == "simvlm")


def test_cocas_text_vector_sees_the_real_tokens_alone():
    objective = ALL["coca"]
    embed = jax.jit(lambda tokens: objective.embed_texts({"params": params(objective)}, tokens))
    read = lambda row: np.asarray(embed(np.int32([row])))
    row = [0, 7, 8, 1, 0, 0, 0, 0]
    for place in range(8):
        other = list(row)
        other[place] = 9
        assert np.any(read(other) != read(row)) == (place < 4), place


@everyone
def test_cached_captions_are_uncached_ones(name):
    """Greedy, after a prompt, beside an argmax over everything read anew."""
    objective, tokenizer = ALL[name], ByteTokenizer(0)
    variables = {"params": params(objective)}
    batch = tiny.captions_of(2)(0)
    images, ids = compiled(objective.view, {**batch, "aspect": np.ones(2, np.float32)}), [0, 100, 101]
    encoded = compiled(objective.see, variables, images)
    rows = [[*ids], [*ids]]
    how = {"prefix": jnp.array([len(ids)])} if objective.prefix else {}
    run = jax.jit(lambda tokens: logits_of(objective, variables, encoded, tokens, **how))
    while len(rows[0]) < tiny.LENGTH:
        full = np.zeros((2, tiny.LENGTH - 1), np.int32)
        full[:, : len(rows[0])] = rows
        z = run(full)[:, len(rows[0]) - 1, :259]
        rows = [[*row, int(k)] for row, k in zip(rows, np.argmax(z, -1))]
    wanted = [tokenizer.decode([i for i in row[: (row + [1]).index(1)] if i != 0]).strip() for row in rows]
    found = caption(objective, variables, tokenizer, list(batch["image"]), "ab")
    assert found == wanted and all(text.startswith("ab") for text in found)


def test_captions_of_each_batch_are_drawn_by_themselves(tmp_path, monkeypatch):
    """Of two batches the rows are other pictures, and no caption is another's for having its place."""
    prepared, seeds = opened(plain(tmp_path), valid=0.5), []
    data = Opened(prepared.source)
    data.tokenizer = prepared.tokenizer
    monkeypatch.setattr(captions, "BATCH", 1)
    monkeypatch.setattr(captions, "write", lambda *a, seed: seeds.append(seed) or ["a"])
    objective = tiny.coca(tokenizer=None).bind(ByteTokenizer(0).vocabulary)
    Captions(prompt="a").check(objective, data)
    with pytest.raises(UserError, match="a prompt of 22 tokens leaves no room in captions of 7"):
        Captions(prompt="a caption of a picture").check(objective, data)
    Captions(temperature=1.0, seed=3).run(objective, {"params": {}}, data)
    assert len(seeds) > 1 and len(set(seeds)) == len(seeds) and seeds[0] == 3


def test_captions_are_scored_and_shown(tmp_path):
    prepared, objective = (
        opened(plain(tmp_path), valid=0.5),
        tiny.coca(
            tokenizer=None, text=coca_text("tiny", None, 16, **tiny.TOWER | {"layers": 1, "multimodal_layers": 1})
        ).bind(ByteTokenizer(0).vocabulary),
    )
    data = Opened(prepared.source)
    data.tokenizer = prepared.tokenizer
    numbers, (shown,) = Captions(shown=2).run(objective, {"params": params(objective)}, data)
    assert set(numbers) == {f"{kind}{name}" for kind in ("", "chance/") for name in ("bleu4", "rouge_l", "cider")}
    assert numbers["chance/rouge_l"] == pytest.approx(0.5)  # "caption 1" beside "caption 2"
    assert shown.kind == "image" and shown.value.dtype == np.uint8 and shown.value.ndim == 3
    sampled, _ = Captions(shown=2, temperature=5.0, seed=1).run(objective, {"params": params(objective)}, data)
    assert set(sampled) == set(numbers)
    other, (shown,) = Captions(split="train", shown=2).run(objective, {"params": params(objective)}, data)
    assert {"train/cider", "chance/train/cider"} <= set(other) and not set(other) & set(numbers)
    assert shown.name == "train/captions"


def test_a_captioner_joins_a_pair_of_towers_at_the_encoder():
    """As in SigLIP 2: one encoder, and each part's own caption rows."""
    siglip = tiny.siglip()
    whole = Sum(parts=(("siglip", siglip), ("captions", tiny.cappa(encoder=siglip.encoder))))
    p = jax.jit(whole.init)(jax.random.key(0))
    assert set(p) == {"encoder", "image_head", "text", "text_head", "log_scale", "bias", "captioner"}
    parts = {"siglip": tiny.batch_of(masked=8 - ROWS)(0), "captions": BATCH}
    batch = {f"{name}/{k}": x for name, one in parts.items() for k, x in one.items() if k not in ("index", "mask")}
    batch |= {k: BATCH[k] for k in ("index", "mask")}
    slope = jax.jit(jax.grad(lambda p, ctx: whole.loss(p, {"siglip": {}, "captions": {}}, batch, ctx).value()))
    found = slope(p, TRAIN)
    leaves = {"captioner": "embedding", "text": "embedding", "encoder": "kernel"}
    assert all(np.any(found[name]["embed"][leaf]) for name, leaf in leaves.items())
    image = batch["captions/image"]
    assert caption(whole.parts[1][1], {"params": p}, ByteTokenizer(0), list(image[:1]))[0] is not None


def test_masked_clip_reads_some_patches_in_training_and_all_in_evaluation():
    objective = tiny.clip(patch_drop=0.5)
    p, batch = params(objective), tiny.batch_of()(0)
    spec = objective.batch_spec(8)
    whole = tiny.clip()
    assert objective.forward_flops(spec)["encoder"] < 0.6 * whole.forward_flops(spec)["encoder"]
    seen = lambda o, ctx: jax.jit(lambda: o.encode(p, {}, batch, ctx)[0]["image"])()
    np.testing.assert_array_equal(seen(objective, EVALUATION), seen(whole, EVALUATION))
    one, other = seen(objective, TRAIN), seen(whole, TRAIN)
    assert np.all(np.any(one != other, axis=1))
    grid = compiled(whole.views[0], batch["image"], batch["aspect"], TRAIN.keys("view/0", batch["index"]))
    noise = np.stack([jax.random.uniform(key, (16,)) for key in TRAIN.keys("patches", batch["index"])])
    keep = np.argsort(noise, axis=1)[:, :8]
    x, _ = compiled(whole.encoder.apply, {"params": p["encoder"]}, grid, keep=keep)
    x = x @ p["image_head"]["project"]["kernel"]
    np.testing.assert_allclose(one, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: tiny.cappa(parallel=1.5), "CapPa.parallel=1.5: a share of the examples lies from 0 to 1"),
        (lambda: tiny.cappa(captioner=cappa_text("tiny", None, 7, mask_token=False)), "mask_token=True, or parallel=0"),
        (lambda: tiny.cappa(encoder=resnet("tiny", image_size=16)), "CapPa reads patches: choose a ViT"),
        (lambda: tiny.open_coca(queries=1), "CoCa.queries=1 leaves captions no token of a picture: 2 is the least"),
        (lambda: tiny.coca(text=tiny.clip().text), "CoCa.text is no decoder in two halves: choose coca_text"),
        (lambda: tiny.clip(patch_drop=1.0), "CLIP.patch_drop=1.0: a share of a ViT's patches"),
        (lambda: tiny.coca(text=coca_text("tiny", 100, 7)), "the tokenizer has 259 ids but the text tower of CoCa 100"),
        (lambda: coca_text("b", None, 1), "captions of 1 tokens hold no text: make length 2 or more"),
        (
            lambda: single_stream("b", positions="rope"),
            "SingleStream.positions='rope': captions have learned positions",
        ),
        (lambda: Captions(images=0), "Captions.images=0: 1 is the least"),
        (lambda: Captions(temperature=-1.0), "temperature=-1.0: 0 takes the most probable token"),
        (
            lambda: Captions().check(NextToken(model=gpt("tiny", 300), length=8), None),
            "Captions: NextToken cannot caption pictures, .*CapPa.*CoCa.*SimVLM can: take Captions from",
        ),
        (lambda: written("a caption of a picture"), "a prompt of 22 tokens leaves no room in captions of 7"),
        (lambda: written("a", ByteTokenizer(100)), "the tokenizer has 359 ids, but the model 259; take the one of"),
        (lambda: written("a", channels=1), "pictures have 1 channels and the encoder reads 3"),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(UserError, match=message):
        make()


def written(prompt, tokenizer=None, channels=3):
    objective = ALL["cappa"]
    if tokenizer:
        objective = dataclasses.replace(objective, tokenizer=None)
    image = np.zeros((8, 8, channels), np.uint8)
    return caption(objective, {"params": params(ALL["cappa"])}, tokenizer or ByteTokenizer(0), image, prompt)


def test_a_caption_longer_than_the_decoder_is_counted_and_keeps_its_end():
    row, cut = ALL["cappa"].preprocess.tokens("abcdefghij")
    assert cut and row.tolist() == [0, *[ord(c) + 3 for c in "abcdef"], 1]
    inputs, targets, weights = ALL["cappa"].scored({"tokens": row[None], "mask": np.ones(1)})
    assert weights.tolist() == [[1.0] * 7] and targets[0, -1] == 1 and inputs[0, 0] == 0


def test_the_bigram_baseline_knows_captions_that_follow_a_pattern():
    class Source(list):
        def captions(self, position):
            return self[position]

    class Data:
        def records(self, split):
            return Source([("ab",)] * 50)

        def batches(self, phase=None):
            row, _ = ALL["cappa"].preprocess.tokens("ab")
            yield {"tokens": row[None], "mask": np.ones(1, np.float32)}

    data = Data()
    data.tokenizer = ByteTokenizer(0)
    numbers, _ = BigramCaptions().run(ALL["cappa"], {}, data)
    assert numbers["bigram/caption_nll"] < 0.1


def test_unified_vlp_is_the_papers():
    """In value and gradient: the places, what is read there and the mask of each example, as they are drawn."""
    objective, tokens = tiny.unified_vlp(rate=0.4), BATCH["tokens"][:, 1:]
    draw = lambda name, n: np.stack([jax.random.uniform(key, (n,)) for key in TRAIN.keys(name, BATCH["index"])])
    noise, kind, other = (draw(name, 7) for name in ("hidden", "kind", "other"))
    one = np.array([jax.random.uniform(key) for key in TRAIN.keys("seq2seq", BATCH["index"])])
    read, hidden, prefix, places = tokens.copy(), np.zeros((8, 7), bool), np.zeros(8, np.int32), []
    for row in range(ROWS):
        n = (tokens[row].tolist() + [1]).index(1) + 1 if 1 in tokens[row] else 7
        prefix[row] = 0 if one[row] < 0.75 else n
        for t in np.argsort(noise[row, :n])[: max(1, round(0.4 * n))]:
            places.append((row, t))
            hidden[row, t] = kind[row, t] < 0.8
            if kind[row, t] >= 0.9:
                read[row, t] = int(other[row, t] * 259)
    assert prefix.any() and hidden.any() and not prefix[:ROWS].all()

    @jax.jit
    @jax.value_and_grad
    def slow(p):
        images = objective.views[0](BATCH["image"], BATCH["aspect"], TRAIN.keys("view/0", BATCH["index"]))
        encoded = objective.apply("encoder", {"params": p}, images, method="see")[0]
        logits = logits_of(objective, {"params": p}, encoded, read, hidden=jnp.array(hidden), prefix=jnp.array(prefix))
        return sum(-jax.nn.log_softmax(logits[i, t])[tokens[i, t]] for i, t in places) / len(places)

    fast = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {}, BATCH, TRAIN).value()))
    (value, slope), (wanted, wanted_slope) = fast(params(objective)), slow(params(objective))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    contract.assert_trees_close(slope, wanted_slope, 2e-5)
    for change, message in (
        ({"rate": 2.0}, "UnifiedVLP.rate=2.0: a share lies from 0 to 1"),
        ({"random": 0.3}, "masked=0.8 and random=0.3 are together more than 1"),
        ({"encoder": tiny.simvlm().encoder}, "hides tokens: set the encoder's mask_token=True"),
    ):
        with pytest.raises(UserError, match=message):
            tiny.unified_vlp(**change)
