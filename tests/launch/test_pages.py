"""The pages of docs/results that commands write: what is done is not done again, and the page says what is there."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import compare, multimodal, vision
from paradigm.errors import UserError

STEPS = (100, 200)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """run(module, **flags): the command, with training and evaluation that give a number for each name at once, and
    pictures that hold none."""
    calls = []

    def train(run, workdir, bindings):
        calls.append(("train", run, workdir.name, tuple(bindings)))
        workdir.mkdir(parents=True, exist_ok=True)
        rows = [{"step": s, "valid/knn": 0.5, "valid/image_to_text@10": 0.5, "valid/caption_nll": 2.0} for s in STEPS]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluate(workdir, name, bindings):
        if not (workdir / f"{name}.json").exists():
            calls.append((name, workdir.parent.name, workdir.name, tuple(bindings)))
            pairs = {*multimodal.METRICS, "image_to_text@1", "cider", "caption_nll"}
            pairs |= {f"test/{key}" for key in pairs}
            keys = {"finetune"} if name == "finetune" else {*vision.PROBES, *pairs}
            share = {"aim": 0.9, "dino": 0.8, "mae": 0.7, "simclr": 0.6}.get(workdir.parent.name, 0.5)
            numbers = dict.fromkeys(sorted(keys), share + int(workdir.name) / 100)
            (workdir / f"{name}.json").write_text(json.dumps(numbers | {f"random/{k}": 0.25 for k in keys}))
        return json.loads((workdir / f"{name}.json").read_text())

    def run(module, **values):
        given = {"WORKDIR": tmp_path / "runs", "OUT": tmp_path / "out", "SEEDS": 1, "ONLY": None, "GIN_PARAM": []}
        given |= {
            "PHOTOS": tmp_path,
            "IMAGES": None,
            "TUNE": True,
            "PART": ["objectives"],
            "EMOJI": tmp_path,
            "BOOKS_AT": None,
            "DATA": None,
        }
        for name, value in (given | values).items():
            monkeypatch.setattr(module, name, SimpleNamespace(value=value), raising=False)
        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "evaluate", evaluate)
        monkeypatch.setattr(module, "curves", lambda groups, key, labels, path, *_, **__: path.write_bytes(b""))
        calls.clear()
        module.main([])
        page = next((tmp_path / "out").glob(f"{module.__name__.split('.')[1]}.md")).read_text()
        return [call[:3] for call in calls], {
            line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")
        }

    return run


def test_the_page_of_pictures(bench):
    calls, rows = bench(vision, ONLY=["mae", "supervised", "beit", "simclr"])
    trained = [run for what, run, _ in calls if what == "train"]
    assert trained == ["mae", "supervised", "vq", "beit", "simclr"]  # in the order that was asked for
    assert [run for what, run, _ in calls if what == "finetune"] == ["mae", "supervised", "beit", "simclr"]
    assert set(rows) == {"objective", "random init", "mae", "supervised", "beit", "simclr"}
    assert rows["mae"].split(" | ")[1:3] == ["1", "1"] and "70.0" in rows["mae"] and "±" not in rows["mae"]
    assert "25.0" in rows["random init"]
    calls, rows = bench(vision, ONLY=["mae"], SEEDS=2)
    assert calls == [("train", "mae", "1"), ("scores", "mae", "1"), ("finetune", "mae", "1")]
    assert rows["mae"].split(" | ")[1] == "2" and "70.5 ± 0.7" in rows["mae"] and rows["beit"].split(" | ")[1] == "1"
    assert bench(vision, ONLY=["mae", "supervised", "beit", "simclr"])[0] == []


def test_the_smaller_questions_of_the_page_of_pictures(bench, tmp_path):
    names = ["mae_25", "mae", "mae_then_supervised", "beit_dvae", "moco_v2_256", "simclr", "dino_flops"]
    calls, rows = bench(vision, ONLY=names, PART=["studies"])
    trained = [run for what, run, _ in calls if what == "train"]
    assert trained == ["mae", "mae", "mae", "supervised", "dvae", "beit", "moco_v2", "simclr", "dino"]
    assert [run for what, run, _ in calls if what == "finetune"] == ["mae_25", "mae", "simclr"]
    assert "25 %" in rows and "75 %" in rows and "90 %" not in rows
    assert float(rows["dino"].split(" | ")[3]) == float(rows["simclr"].split(" | ")[3]) == 2  # its unit's FLOPs
    page = (tmp_path / "out" / "vision.md").read_text()
    assert "How much to hide" in page and "How many keys" not in page  # one row is no comparison


def test_each_run_of_a_question_is_one(bench):
    bench(vision, ONLY=["supervised"], TUNE=False)
    data = vision.Data("eurosat", "", "", ())
    for run in vision.STUDIED:
        assert vision.cost(data, run)[1] > 0, run


def test_notes_below_a_page_stay(bench, tmp_path):
    bench(vision, ONLY=["supervised"], TUNE=False)
    page = tmp_path / "out" / "vision.md"
    page.write_text(page.read_text() + "\n## Notes\n\nSeen by a person.\n")
    _, rows = bench(vision, ONLY=["mae"], TUNE=False)
    assert "mae" in rows and page.read_text().endswith("\n## Notes\n\nSeen by a person.\n")
    assert page.read_text().count("## Notes") == 1


def test_compute_is_counted_in_supervised_training(bench):
    _, rows = bench(vision, ONLY=["supervised", "simclr", "dino"], TUNE=False)
    assert rows["supervised"].split(" | ")[2:4] == ["1", "1"] and rows["simclr"].split(" | ")[2:4] == ["2", "2"]
    assert rows["dino"].split(" | ")[2] == "2 + 4 small" and float(rows["dino"].split(" | ")[3]) > 3


def test_the_page_of_pairs(bench, tmp_path):
    calls, rows = bench(multimodal, ONLY=["clip", "coca", "simvlm"])
    assert [run for what, run, _ in calls if what == "train"] == ["clip", "coca", "simvlm"] * 2
    assert {"clip", "coca", "simvlm", "random init"} <= set(rows) and "siglip" not in rows
    assert bench(multimodal, ONLY=["clip", "coca", "simvlm"])[0] == []
    (tmp_path / "books").mkdir()
    calls, _ = bench(multimodal, ONLY=["clip", "coca"], BOOKS_AT=tmp_path / "books", DATA=["books"])
    assert [run for what, run, _ in calls if what == "train"] == ["clip", "coca"]
    page = (tmp_path / "out" / "multimodal.md").read_text().partition("Figures of textbooks")[2].partition("Scenes")[0]
    assert "| coca | 1 | 50.0 |" in page and "| coca | 1 | 0.50 | 0.50 |" in page and "siglip" not in page
    with pytest.raises(UserError, match="--data=made_up: choose from emoji, shapes"):
        bench(multimodal, DATA=["made_up"])


@pytest.mark.parametrize("module", [vision, multimodal])
def test_an_unknown_objective_is_named(bench, module):
    with pytest.raises(UserError, match="--only=made_up: choose from"):
        bench(module, ONLY=["made_up"])


def test_a_curve_is_the_mean_of_its_seeds_in_percent(tmp_path):
    for seed, first in ((0, 0.25), (1, 0.75)):
        (tmp_path / str(seed)).mkdir()
        rows = ({"step": 100, "valid/knn": first}, {"step": 150, "train/loss": 1.0}, {"step": 200, "valid/knn": 0.5})
        (tmp_path / str(seed) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = []
    axis = SimpleNamespace(
        plot=lambda *xy, **_: drawn.append(xy), fill_between=lambda x, low, high, **_: drawn.append((low, high))
    )
    seeds = [tmp_path / "0", tmp_path / "1"]
    compare.curve(axis, seeds, "knn", 100.0, label="mae", color="C0")
    assert drawn == [([100, 200], [50.0, 50.0]), ([25.0, 50.0], [75.0, 50.0])]
    compare.curves({"hidden": {"mae": seeds}, "views": {"dino": seeds[:1]}}, "knn", {}, tmp_path / "x.png", {"none": 9})
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
