"""Tokenizers: what every objective passes, VQ's and DALL-E's losses by loops, the codebook's averages and restarts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.errors import UserError
from paradigm.objective import Context, Loss
from paradigm.schedule import Linear
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import DVAE, VQ
from vision.patches import patchify

BATCH = tiny.batch_of()
FIELDS = {"augment": tiny.views(), "host_image_size": tiny.HOST_SIZE, "codes": 8, "code_width": 4}
FIELDS |= {"decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}


def vq(**changes):
    return VQ(**FIELDS | {"encoder": tiny.encoder()} | changes)


def vq_kd(**changes):
    return vq(target=tiny.encoder(d_model=8), normalized=True, commitment=1.0, **changes)


def dvae(**changes):
    fields = {"encoder": tiny.encoder(), "temperature": Linear(1.0, 10, final=1 / 16), "kl": Linear(0.0, 5, final=6.6)}
    return DVAE(**FIELDS | fields | changes)


CASES = {
    "vq": contract.Case(vq(), BATCH, "codebook", tiny.masked),
    "vq_kd": contract.Case(vq_kd(), BATCH, "codebook", tiny.masked),
    "dvae": contract.Case(dvae(), BATCH, "patches", tiny.masked),
}
globals().update(contract.tests(CASES))


def start(objective):
    params = tiny.params(objective)
    return params, compiled(objective.init_extra, params, jax.random.key(2))


def latents(objective, params, images):
    _, seen, _ = compiled(objective.apply, "encoder", {"params": params}, images)
    fc = params["quantizer"]["fc0"]
    z = np.float64(seen["patches"]) @ np.float64(fc["kernel"]) + np.float64(fc["bias"])
    return z / np.linalg.norm(z, axis=-1, keepdims=True) if getattr(objective, "normalized", False) else z


def nearest(objective, extra, z):
    """(ids [B, N], codes [B, N, d]) one latent at a time."""
    book = jax.tree.map(np.float64, extra["batch_stats"]["quantizer"]["codebook"])
    codes = book["sum"] / book["count"][:, None]
    if objective.normalized:
        codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
    ids = np.array([[np.argmin([np.sum((v - e) ** 2) for e in codes]) for v in row] for row in z])
    return ids, codes[ids]


@pytest.mark.parametrize("make", [vq, vq_kd])
def test_loss_is_the_papers(make):
    objective, batch = make(), tiny.masked(3)
    params, extra = start(objective)
    loss = jax.jit(lambda p, e: objective.loss(p, e, batch, Context(jnp.int32(0), 0, False)))(params, extra)
    images = compiled(objective.view, batch)
    z = latents(objective, params, images)
    ids, codes = nearest(objective, extra, z)
    assert len(np.unique(ids)) > 2
    outputs = np.float64(compiled(objective.apply, "decoder", {"params": params}, jnp.float32(codes))[0])
    if make is vq:
        each = [np.mean((o - x) ** 2) for o, x in zip(outputs, np.asarray(patchify(images, 4)))]
    else:
        wanted = np.float64(compiled(objective.apply, "target", {"params": params}, images)[1]["patches"])
        cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        each = [np.mean([1 - cosine(a, b) for a, b in zip(o, t)]) for o, t in zip(outputs, wanted)]
    term = loss.terms["reconstruction"]
    np.testing.assert_allclose([term.sum, term.weight], [sum(each[:6]), 6], rtol=1e-5)
    term = loss.terms["commitment"]
    np.testing.assert_allclose(term.sum, sum(np.mean((z - codes) ** 2, (1, 2))[:6]), rtol=1e-4)
    assert term.coefficient == objective.commitment


def test_the_gradient_goes_straight_through():
    """The encoder's output has the decoder's gradient as if nothing were quantized, and the commitment's."""
    objective, batch = vq(), BATCH(1)
    params, extra = start(objective)
    variables = objective.variables(params, extra)
    images = compiled(objective.view, batch)
    patches = compiled(objective.apply, "encoder", variables, images)[1]["patches"]
    wanted = patchify(images, 4)

    def through(x):
        codes, more, _ = compiled(objective.apply, "quantizer", variables, x)
        far = jnp.mean((compiled(objective.apply, "decoder", variables, codes)[0] - wanted) ** 2)
        return far + 0.25 * jnp.mean((more["latent"] - jax.lax.stop_gradient(more["nearest"])) ** 2)

    _, more, _ = compiled(objective.apply, "quantizer", variables, patches)

    def by_hand(z):
        return jnp.mean((compiled(objective.apply, "decoder", variables, z)[0] - wanted) ** 2)

    slope = jax.grad(by_hand)(more["nearest"])
    slope += 0.25 * 2 * (more["latent"] - more["nearest"]) / more["latent"].size
    slope = slope @ params["quantizer"]["fc0"]["kernel"].T
    np.testing.assert_allclose(jax.grad(through)(patches), slope, atol=1e-7, rtol=1e-4)


def test_codes_are_moving_means_and_dead_ones_start_again():
    objective, batch = vq(decay=0.9, restart=0.2), tiny.masked(3)
    params, extra = start(objective)
    extra["batch_stats"]["quantizer"]["codebook"]["count"] = jnp.full(8, 2.0).at[5].set(0.1)
    extra["batch_stats"]["quantizer"]["codebook"]["sum"] = (
        jnp.zeros((8, 4)).at[:, 0].set(9.0).at[:3].set(jax.random.normal(jax.random.key(0), (3, 4)))
    )
    ctx = Context(jnp.int32(0), 0, True)
    loss = compiled(objective.loss, params, extra, batch, ctx)
    after = compiled(objective.update_extra, extra, params, loss, ctx)["batch_stats"]["quantizer"]["codebook"]
    z = latents(objective, params, compiled(objective.draw, batch, ctx))
    ids, _ = nearest(objective, extra, z)
    book = extra["batch_stats"]["quantizer"]["codebook"]
    for k in range(8):
        mine = [z[b, n] for b in range(6) for n in range(16) if ids[b, n] == k]  # rows 6 and 7 are padding
        count = 0.9 * float(book["count"][k]) + 0.1 * len(mine) / 8
        total = 0.9 * np.float64(book["sum"][k]) + 0.1 * np.sum(mine, 0) / 8
        if k == 5:
            assert count < 0.2 * 16 / 8 and float(after["count"][k]) == 2.0
            code = np.asarray(after["sum"][k]) / 2.0
            assert np.abs(z[:6] - code).max(-1).min() < 1e-5 < np.abs(z[6:] - code).max(-1).min()
        else:
            np.testing.assert_allclose(after["count"][k], count, rtol=1e-5)
            np.testing.assert_allclose(after["sum"][k], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_code_that_nothing_is_near_to_for_long_keeps_its_place(normalized):
    """Without restarts its moving averages would come to 0 / 0, and a code that is no number is the nearest to all."""
    objective = vq(restart=0.0, decay=0.1, normalized=normalized)
    params, extra = start(objective)
    book = {"count": jnp.full(8, 1e-37), "sum": 1e-37 * jax.random.normal(jax.random.key(0), (8, 4))}
    extra["batch_stats"]["quantizer"]["codebook"] = book
    nothing = Loss(stats={f"quantizer/codebook/{name}": jnp.zeros(x.shape) for name, x in book.items()})
    table = lambda extra: objective.apply("quantizer", {"params": params, **extra}, jnp.arange(8), method="lookup")[0]
    before = table(extra)
    for _ in range(3):
        extra = objective.update_extra(extra, params, nothing, Context(jnp.int32(0), 0, True))
    np.testing.assert_allclose(table(extra), before, rtol=1e-4)


def test_use_of_the_codebook():
    objective, batch = vq(), BATCH(0)
    params, extra = start(objective)
    count = np.array([1, 1, 1, 1, 0, 0, 0, 0.01], np.float32)
    extra["batch_stats"]["quantizer"]["codebook"]["count"] = jnp.asarray(count)
    metrics = compiled(objective.loss, params, extra, batch, Context(jnp.int32(0), 0, False)).metrics
    share = count / count.sum()
    wanted = math.exp(-sum(p * math.log(p) for p in share if p))
    np.testing.assert_allclose(metrics["codebook_perplexity"][0] / metrics["codebook_perplexity"][1], wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["codebook_usage"][0] / metrics["codebook_usage"][1], 0.5)


def test_dalle_loss_is_the_papers():
    objective, batch = dvae(), tiny.masked(3)
    params = tiny.params(objective)
    ctx = Context(jnp.int32(2), 0, True)
    loss = jax.jit(lambda p: objective.loss(p, {}, batch, ctx))(params)
    images = compiled(objective.draw, batch, ctx)
    logits = latents(objective, params, images)
    noise = np.stack([jax.random.gumbel(k, (16, 8)) for k in ctx.keys("gumbel", batch["index"])])
    tau, beta = 1 - 0.2 * 15 / 16, 6.6 * 0.4
    soft = np.exp((logits + noise) / tau)
    codes = (soft / soft.sum(-1, keepdims=True)) @ np.float64(params["quantizer"]["codebook"])
    outputs = np.float64(compiled(objective.apply, "decoder", {"params": params}, jnp.float32(codes))[0])
    pixels = np.clip(np.float64(patchify(compiled(objective.views[0].undo, images), 4)), 0, 1) * 0.8 + 0.1
    nll = kl = 0.0
    for b in range(6):
        for n in range(16):
            p = np.exp(logits[b, n]) / np.exp(logits[b, n]).sum()
            kl += sum(q * math.log(q * 8) for q in p) / (16 * 16 * 3)
            for i, x in enumerate(pixels[b, n]):
                mu, b_ = outputs[b, n, i], math.exp(outputs[b, n, 48 + i])
                density = math.exp(-abs(math.log(x / (1 - x)) - mu) / b_) / (2 * b_ * x * (1 - x))
                nll -= math.log(density) / (16 * 16 * 3)
    np.testing.assert_allclose(loss.terms["reconstruction"].sum, nll, rtol=1e-4)
    np.testing.assert_allclose(loss.terms["kl"].sum, kl, rtol=1e-4)
    np.testing.assert_allclose(loss.terms["kl"].coefficient, beta, rtol=1e-6)


@pytest.mark.parametrize("make", [vq, dvae])
def test_one_module_reads_and_writes_the_same_ids(make):
    """The Tokenizer that others read gives what the objective's three modules give."""
    objective = make()
    params, extra = start(objective)
    variables = objective.variables(params, extra)
    images = compiled(objective.view, BATCH(0))
    whole = {kind: tree for kind, tree in variables.items()}
    ids, _ = compiled(objective.tokenizer.apply, whole, images)
    np.testing.assert_array_equal(ids, compiled(objective.ids, variables, images))
    assert ids.shape == (8, 16) and ids.min() >= 0 and ids.max() < 8
    shown = compiled(objective.reconstruct, variables, images, None)["reconstructed"]
    outputs, _ = compiled(objective.tokenizer.apply, whole, ids, method="decode")
    np.testing.assert_allclose(patchify(shown, 4), objective.pixels(outputs), atol=1e-5)
    assert shown.shape == images.shape


def test_pixels_undo_the_squeeze():
    objective = dvae()
    images = compiled(objective.view, BATCH(0))
    x = 0.8 * patchify(compiled(objective.views[0].undo, images), 4) + 0.1
    outputs = jnp.concatenate([jnp.log(x) - jnp.log1p(-x), jnp.zeros_like(x)], -1)
    np.testing.assert_allclose(objective.pixels(outputs), patchify(images, 4), atol=1e-4)


def test_mistakes():
    with pytest.raises(UserError, match=r"VQ.target has \(2, 2\) patches and the encoder \(4, 4\)"):
        vq(target=tiny.encoder().clone(patch=8))
    with pytest.raises(UserError, match="VQ.codes=1: choose 2 or more"):
        vq(codes=1)
    with pytest.raises(UserError, match="unknown DVAE.distribution 'laplace'"):
        dvae(distribution="laplace")
