import dataclasses
import math
import tracemalloc
import types

import jax.numpy as jnp
import numpy as np
import pytest

import multimodal.objectives  # noqa: F401  (an error names those that are imported)
from multimodal import ask, visualize, zero_shot
from multimodal.preprocess import PreprocessPair
from multimodal.templates import TEMPLATES, templates
from multimodal.zero_shot import TIE, Retrieval, ZeroShot, by_chance, class_vectors, ranks
from paradigm.capabilities import PairEmbedding
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.records import Subset
from t5like.tokenizers import ByteTokenizer
from tests.multimodal import tiny
from tests.multimodal.pairs import opened, table
from tests.vision import tiny as pictures
from tests.vision.pictures import folder
from vision.data import ImageData
from vision.objectives import SimCLR
from vision.preprocess import PreprocessImage

COLOURS = {"Red": (255, 0, 0), "Green": (0, 255, 0), "Blue": (0, 0, 255), "Yellow": (255, 255, 0)}


def unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


@dataclasses.dataclass(frozen=True)
class Oracle(PairEmbedding):
    """Towers that know colours: of a picture by its pixels, of a text by its capital letters."""

    parts = ()

    @property
    def preprocess(self):
        return PreprocessPair(PreprocessImage(2, 3), 24, vocabulary=ByteTokenizer(0).vocabulary)

    def init(self, key):
        return {"text": jnp.zeros((3, 3)), "image": jnp.zeros((3, 3))}

    def init_extra(self, params, key):
        return {}

    def variables(self, params, extra, which="online"):
        return {"params": params}

    def view(self, batch):
        return batch["image"].astype(jnp.float32) / 255

    def aspect(self, batch):
        return batch["aspect"]

    def embed_images(self, variables, images):
        return unit(images.mean((1, 2)) @ variables["params"]["image"] + 1e-3)

    def embed_texts(self, variables, tokens):
        red, green, blue, yellow = (jnp.sum(tokens == ord(c) + 3, axis=1) for c in "RGBY")
        x = jnp.stack([red + yellow, green + yellow, blue], axis=1).astype(jnp.float32)
        return unit(x @ variables["params"]["text"] + 1e-3)

    def tokenize(self, texts, tokenizer=None):
        return np.stack([self.preprocess.tokens(text, tokenizer)[0] for text in texts])


KNOWS = {"params": {"text": jnp.eye(3), "image": jnp.eye(3)}}
KNOWS_NOTHING = {"params": {"text": jnp.zeros((3, 3)), "image": jnp.zeros((3, 3))}}


class Data:
    def __init__(self, prepared):
        self.prepared, self.records, self.tokenizer = prepared, prepared.source, prepared.tokenizer
        self.train = Dataset(prepared.source(), Oracle().preprocess, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pictures of each colour to validate on; both of Red have one caption, and a green one is labelled Blue."""
    root = tmp_path_factory.mktemp("colours")
    lines, files = [], {}
    for k, (name, colour) in enumerate(2 * list(COLOURS.items())):
        files[f"{k}.png"] = np.full((4, 6, 3), colour, np.uint8)
        caption = "a Red one" if name == "Red" else f"{name} {k}"
        lines.append((f"{k}.png", caption, "Blue" if k == 5 else name, "valid"))
    files["t.png"] = np.zeros((4, 4, 3), np.uint8)
    lines += [("t.png", "nothing", "Red", "train"), ("none.png", "nothing", "Red", "valid")]
    folder(root, files)
    path = table(root, ("image", "caption", "colour", "part"), *lines)
    return Data(opened(path, label="colour", split="part"))


# ------------------------------------------------------------------------------------------------------------- counting


def slow_ranks(queries, candidates, right):
    found = []
    for q, query in enumerate(queries):
        own = {t for i, t in right if i == q}
        best = max(float(query @ candidates[t]) for t in own)
        found.append(sum(float(query @ c) >= best - TIE for t, c in enumerate(candidates) if t not in own))
    return found


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_ranks_against_a_loop(chunk):
    draw = np.random.default_rng(0)
    queries, candidates = (np.array(unit(draw.standard_normal((n, 3)).astype(np.float32))) for n in (19, 13))
    candidates[5] = candidates[2]  # equally near
    right = np.array([(i, i % 13) for i in range(19)] + [(4, 9), (11, 0), (11, 2)])
    draw.shuffle(right)
    found = ranks(queries, candidates, right, chunk)
    assert found.tolist() == slow_ranks(queries, candidates, right.tolist())
    assert len(set(found.tolist())) > 5 and found.min() == 0


def test_ties_count_against():
    same = np.ones((4, 2), np.float32) / np.float32(2**0.5)
    right = np.stack([np.arange(4)] * 2, 1)
    assert ranks(same, same, right).tolist() == [3, 3, 3, 3]
    assert ranks(same, same, np.concatenate([right, [(0, 1), (0, 2), (0, 3)]])).tolist() == [0, 3, 3, 3]


def test_the_full_matrix_is_never_made():
    draw = np.random.default_rng(0)
    x, y = (draw.standard_normal((3000, 4)).astype(np.float32) for _ in range(2))
    right = np.stack([np.arange(3000)] * 2, 1)
    tracemalloc.start()
    ranks(x, y, right, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4 / 30


def test_chance_is_that_of_blind_draws():
    for answers, candidates, k in ((1, 10, 1), (3, 10, 5), (2, 4, 3), (1, 3, 10)):
        blind = 1 - math.comb(candidates - answers, min(k, candidates)) / math.comb(candidates, min(k, candidates))
        assert by_chance(np.array([answers]), candidates, k)[0] == pytest.approx(blind)


# ---------------------------------------------------------------------------------------------------------- evaluators


def test_classes_are_named_in_words(data, monkeypatch):
    found, _ = ZeroShot(("a", "photo")).run(Oracle(), KNOWS, data)
    assert found == pytest.approx(
        {"zero_shot": 7 / 8, "chance/zero_shot": 1 / 4, "random/zero_shot": 0.0}  # one is labelled otherwise
    )
    monkeypatch.setattr(zero_shot, "_first", None)  # the untrained towers are asked once
    blurred = {
        "params": KNOWS["params"] | {"image": jnp.diag(jnp.array([1, 0.2, 1]))}
    }  # what is yellow seems red first
    assert ZeroShot(("a", "photo")).run(Oracle(), blurred, data)[0] == found | {"zero_shot": 5 / 8}
    found, _ = ZeroShot(split="train", present=True, random=False, name="z").run(Oracle(), KNOWS_NOTHING, data)
    assert found == {"z": 1.0, "chance/z": 1.0}  # one class alone


def test_templates_are_averaged_as_unit_vectors(data):
    wanted = ("{}", "{} G", "{} BBB")
    found = class_vectors(Oracle(), KNOWS, ["Red", "Blue"], wanted, data.tokenizer)
    for name, vector in zip(("Red", "Blue"), found):
        mean = np.zeros(3)
        for sentence in wanted:
            tokens = Oracle().tokenize([sentence.replace("{}", name)], data.tokenizer)
            mean += np.asarray(Oracle().embed_texts(KNOWS, tokens))[0]
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-5)


def test_retrieval_counts_every_right_answer(data):
    found, _ = Retrieval(ks=(1, 2), chunk=3).run(Oracle(), KNOWS, data)
    # Seven texts for eight pictures: both of Red are found by their one text, which was written twice, and find it. Of
    # the others each colour has two of its own, equally near, so that one wrong answer stands before the right one.
    assert found["image_to_text@1"] == found["text_to_image@1"] == 2 / 8
    assert found["image_to_text@2"] == found["text_to_image@2"] == 1.0
    assert found["chance/image_to_text@1"] == pytest.approx(1 / 7)
    assert found["chance/text_to_image@1"] == pytest.approx((6 * 1 + 2 * 2) / 8 / 8)
    assert found["random/image_to_text@1"] == found["random/text_to_image@2"] == 0.0
    found, _ = Retrieval(ks=(1,), split="train", random=False).run(Oracle(), KNOWS, data)
    assert found["train/image_to_text@1"] == found["chance/train/text_to_image@1"] == 1.0


def test_several_captions_are_all_right(data, tmp_path):
    folder(tmp_path, {f"{n}.png": np.full((4, 4, 3), c, np.uint8) for n, c in COLOURS.items()})
    lines = [(f"{n}.png", n, f"no {n}", "train" if n == "Yellow" else "valid") for n in COLOURS]
    path = table(tmp_path, ("image", "one", "two", "part"), *lines)
    prepared = opened(path, text=["one", "two"], split="part")
    found, _ = Retrieval(ks=(1, 2), captions=2, random=False).run(Oracle(), KNOWS, Data(prepared))
    assert found["image_to_text@1"] == found["text_to_image@1"] == 1.0
    assert [found[f"chance/{way}@1"] for way in ("image_to_text", "text_to_image")] == pytest.approx([1 / 3] * 2)
    assert found["chance/image_to_text@2"] == pytest.approx(1 - 6 / 15)


def test_pictures_without_a_label_are_not_asked_for(tmp_path):
    names = [*COLOURS] * 2
    folder(tmp_path, {f"{k}.png": np.full((4, 4, 3), COLOURS[n], np.uint8) for k, n in enumerate(names)})
    lines = [(f"{k}.png", n, "" if n == "Blue" else n, "train" if k < 4 else "valid") for k, n in enumerate(names)]
    prepared = opened(table(tmp_path, ("image", "caption", "kind", "part"), *lines), label="kind", split="part")
    assert prepared.classes == ("Green", "Red", "Yellow")
    found, _ = ZeroShot(random=False).run(Oracle(), KNOWS, Data(prepared))
    assert found == pytest.approx({"zero_shot": 1.0, "chance/zero_shot": 1 / 3})
    path = table(tmp_path, ("image", "caption", "kind", "part"), *(line[:2] + ("x" * (k == 0), line[3])
                 for k, line in enumerate(lines)))  # fmt: skip
    with pytest.raises(UserError, match=r"^ZeroShot: no picture of the valid split has a label"):
        ZeroShot().check(Oracle(), Data(opened(path, label="kind", split="part")))


def test_embeddings_do_not_depend_on_batches(data, monkeypatch):
    whole = zero_shot.embed_texts(Oracle(), KNOWS, [f"R{'G' * i}" for i in range(7)], data.tokenizer)
    monkeypatch.setattr(zero_shot, "BATCH", 3)
    parts = zero_shot.embed_texts(Oracle(), KNOWS, [f"R{'G' * i}" for i in range(7)], data.tokenizer)
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    x, labels, places = zero_shot.embed_pictures(Oracle(), KNOWS, data.records("valid"))
    assert x.shape == (8, 3) and places.tolist() == list(range(8))  # the ninth has no picture
    assert [data.prepared.classes[k] for k in labels] == [*COLOURS, "Red", "Blue", "Blue", "Yellow"]


def test_what_evaluators_refuse(data, tmp_path):
    with pytest.raises(
        UserError, match=r"^unknown template 'photos': did you mean 'photo'\? choose from plain, a, pho"
    ):
        ZeroShot(("photos",))
    with pytest.raises(UserError, match=r"^the template '\{\} and \{\}' has several \{\}"):
        ZeroShot(("{} and {}",))
    with pytest.raises(UserError, match=r"^no templates are named"):
        ZeroShot(())
    for kind, setting, value in (
        *((Retrieval, name, 0) for name in ("captions", "pairs", "chunk")),
        *((Retrieval, "ks", ks) for ks in ((), (5, 0))),
        *((visualize.Retrieved, name, 0) for name in ("queries", "nearest", "pairs")),
        (ZeroShot, "images", 0),
        (visualize.Similarity, "count", -1),
    ):
        with pytest.raises(UserError, match=rf"^{kind.__name__}.{setting}=.*: 1 is the least$"):
            kind(**{setting: value})
    folder(tmp_path, {f"{i}.png": np.full((4, 4, 3), i, np.uint8) for i in range(4)})
    plain = Data(opened(table(tmp_path, ("image", "caption"), *((f"{i}.png", f"c{i}") for i in range(4)))))
    with pytest.raises(UserError, match=r"^ZeroShot: the data have no names of classes: set PairData.label"):
        ZeroShot().run(Oracle(), KNOWS, plain)
    with pytest.raises(UserError, match=r"^ZeroShot: the data have no names of classes"):  # before the first step
        ZeroShot().check(Oracle(), plain)
    for evaluator in (Retrieval(split="test"), visualize.Similarity(split="test"), visualize.Retrieved(split="test")):
        with pytest.raises(UserError, match=r"has no test split"):
            evaluator.check(Oracle(), plain)
    with pytest.raises(UserError, match=r"has no test split"):
        Retrieval(split="test").run(Oracle(), KNOWS, plain)
    simclr = SimCLR(encoder=pictures.encoder(), augment=pictures.views(), host_image_size=pictures.HOST_SIZE)
    for evaluator in (ZeroShot(), Retrieval(), visualize.Similarity(), visualize.Retrieved()):
        with pytest.raises(
            UserError, match=r"^\w+: SimCLR cannot embed pictures and texts, .*CLIP, .*SigLIP.* can: take"
        ):
            evaluator.run(simclr, KNOWS, plain)
        with pytest.raises(UserError, match=r"^\w+: SimCLR cannot embed pictures and texts"):
            evaluator.check(simclr, plain)
    images = types.SimpleNamespace(records=ImageData("digits").build(progress=False).source)
    for evaluator in (Retrieval(), visualize.Similarity(), visualize.Retrieved()):
        with pytest.raises(UserError, match=r"^these data have no captions to retrieve: choose pairs"):
            evaluator.check(Oracle(), images)
    with pytest.raises(UserError, match=r"^these data have no captions to retrieve: choose pairs, or leave Retrieval"):
        zero_shot.captions_at(Subset.drawn(ImageData("digits").build(progress=False).source("valid"), 2, 0), 0)


@pytest.mark.parametrize("given", [3, None, [3]])
def test_what_is_no_name_is_refused(given):
    with pytest.raises(UserError, match="^templates: a text is wanted, or a list of them, not "):
        templates(given)
    with pytest.raises(UserError, match="^classify: classes=.*: give the names of two or more"):
        ask.classify(None, None, None, [], given)


def test_published_templates():
    assert len(set(TEMPLATES["clip_80"])) == 80 and set(TEMPLATES["clip_7"]) < set(TEMPLATES["clip_80"])
    assert all(sentence.count("{}") == 1 for group in TEMPLATES.values() for sentence in group)
    assert templates(("clip_7", "clip_80", "an {}")) == (
        *TEMPLATES["clip_7"],
        *(t for t in TEMPLATES["clip_80"] if t not in TEMPLATES["clip_7"]),
        "an {}",
    )


# ------------------------------------------------------------------------------------------------------------- pictures


def test_the_similarity_of_a_batch_is_shown(data):
    _, [shown] = visualize.Similarity(count=9).run(Oracle(), KNOWS, data)
    assert shown.kind == "image" and shown.value.dtype == np.uint8
    cell, left = 64 + visualize.GAP, visualize.TEXT + visualize.GAP
    assert shown.value.shape == (9 * cell, left + 8 * cell, 3)  # a row of pictures above eight pairs
    corner = lambda i, k: shown.value[(i + 1) * cell + 4, left + k * cell + 4]
    for i, a in enumerate(2 * list(COLOURS)):
        assert (shown.value[30, left + i * cell + 30] == COLOURS[a]).all()
        for k, b in enumerate(2 * list(COLOURS)):
            assert (corner(i, k) == visualize.DARK).all() == (a == b)
    assert (shown.value[cell:, : visualize.TEXT].min(axis=(1, 2)) < 100).any()  # captions are written
    grey = np.zeros((4, 4, 3), np.uint8)
    below = visualize.similarity([grey, grey], ["a", "b"], np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert (below[2 * cell + 4, left + 4] == visualize.DARK).all()  # the second caption, the first picture
    assert (below[cell + 4, left + cell + 4] == visualize.PAPER).all()


def test_retrieved_pictures_are_framed_where_right(data):
    _, [shown] = visualize.Retrieved(queries=8, nearest=2, pairs=None).run(Oracle(), KNOWS, data)
    frames = (shown.value == visualize.RIGHT).all(2)
    # Every caption finds both pictures of its colour first: both are right for the two of Red, one for the six others.
    one = (visualize.GAP * 2 + 96) ** 2 - 96**2
    assert frames.sum() == (2 * 2 + 6) * one


def test_long_captions_stay_in_their_place():
    short, long, longer, other = (
        np.asarray(visualize.written(start + "word " * n, 100, 32))
        for start, n in (("start ", 2), ("start ", 50), ("start ", 200), ("", 50))
    )
    assert short.shape == long.shape == (32, 100, 3) and (short < 255).sum() < (long < 255).sum()
    assert (long == longer).all() and (long != other).any()  # the beginning is shown


def test_how_much_hangs_on_the_wording(data):
    """Before four capital Rs a yellow picture is nearer to Green than to Yellow: two of eight are lost."""
    how = {"templates": ("{}", "RRRR {}"), "random": False}
    found, _ = ZeroShot(robust=True, **how).run(Oracle(), KNOWS, data)
    of = {kind: found[f"zero_shot/{kind}"] for kind in ("worst", "one", "spread")}
    assert of == pytest.approx({"worst": 5 / 8, "one": 6 / 8, "spread": 1 / 8})
    assert found["zero_shot"] == ZeroShot(**how).run(Oracle(), KNOWS, data)[0]["zero_shot"]
    with pytest.raises(UserError, match="ZeroShot.robust compares templates, and there is one"):
        ZeroShot(robust=True)


def test_asked_in_a_notebook():
    """Vectors of pictures and texts, one or many; probabilities of classes are those of the scaled cosines."""
    clip = tiny.clip()
    variables = {"params": pictures.params(clip)}
    images = [np.full((5, 5, 3), k, np.uint8) for k in (10, 250)]
    seen, written = ask.embed(clip, variables, None, images), ask.embed(clip, variables, None, ["red", "blue"])
    batch = {"image": np.stack([clip.preprocess.image({"image": x}, None, 0, False)["image"] for x in images])}
    wanted = clip.embed_images(variables, clip.view({**batch, "aspect": np.ones(2, np.float32)}))
    np.testing.assert_allclose(seen, wanted, atol=1e-5)
    np.testing.assert_allclose(written, clip.embed_texts(variables, clip.tokenize(["red", "blue"])), atol=1e-5)
    for one, all_ in ((images[1], seen), ("blue", written)):
        np.testing.assert_allclose(ask.embed(clip, variables, None, one), all_[1], atol=1e-5)
    first, second = ask.classify(clip, variables, None, images, ["red", "blue"], ("plain",))
    logits = np.exp(variables["params"]["log_scale"]) * seen @ written.T
    odds = np.exp(logits[:, 0] - logits[:, 1])
    np.testing.assert_allclose([f.chances["red"] for f in (first, second)], odds / (1 + odds), atol=1e-5)
    assert first.label == max(first.chances, key=first.chances.get)
    again = ask.classify(clip, variables, None, images[1], ["red", "blue"], ("plain",))
    assert again.chances == pytest.approx(second.chances, abs=1e-5)
    with pytest.raises(UserError, match="^classify: classes='red': give the names of two or more"):
        ask.classify(clip, variables, None, images, "red")
    with pytest.raises(UserError, match=r"^classify: classes=\[1, 2\]: give the names of two or more"):
        ask.classify(clip, variables, None, images, [1, 2])
    with pytest.raises(UserError, match=r"^classify: classes=\['red', ' '\]: give the names of two or more"):
        ask.classify(clip, variables, None, images, ["red", " "])
    with pytest.raises(UserError, match="^classify: the class 'red' is named twice, .*: name it once"):
        ask.classify(clip, variables, None, images, ["red", "blue", "red"])
    again = ask.classify(clip, variables, None, images[0], iter(["red", "blue"]), ("plain",))
    assert again.chances == pytest.approx(first.chances)
    with pytest.raises(UserError, match="^blue cannot be read as a picture"):
        ask.embed(clip, variables, None, ["blue", images[0]])
