"""Pairs whose pictures lie in Parquet, and settings of a PairData that say nothing of a kind of source."""

import pytest

from paradigm.errors import UserError
from tests.multimodal.pairs import opened, plain, records, tar
from tests.multimodal.test_tables import everything
from tests.vision.pictures import encoded, pixels, zipped

COUNT = 12
ALL = {i: (f"caption {i}",) for i in range(COUNT)}


def write(path, rows):
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path


def row(i, **more):
    return {"image": {"bytes": encoded(pixels(i)), "path": f"{i}.png"}} | more


def test_captions_beside_pictures_in_parquet(tmp_path):
    path = write(tmp_path / "a.parquet", [row(i, text=f"caption {i}", kind=f"k{i % 2}", n=i) for i in range(COUNT)])
    for source in (path, tmp_path, f"parquet:{path}"):
        prepared = opened(source)
        assert everything(prepared) == ALL and prepared.classes is None
        told = "pictures from image; captions from text; columns left out: kind, n"
        assert prepared.described.endswith(told)
    prepared = opened(path, label="kind", group="kind", valid=0.5)
    assert prepared.classes == ("k0", "k1") and "classes from kind; captions from text; " in prepared.described
    assert len({r["label"] for r in records(prepared, "valid")}) == 1  # a group is whole
    rows = [row(i, captions=[f"caption {i}", f"another {i}"]) for i in range(COUNT)]
    assert everything(opened(write(path, rows))) == {i: (*text, f"another {i}") for i, text in ALL.items()}
    both = lambda i: [{"raw": text, "id": i} for text in (f"caption {i}", f"another {i}")]
    rows = [row(i, captions=both(i)) for i in range(COUNT)]
    with pytest.raises(UserError, match=r"no column 'caption', only image, captions.raw, captions.id: choose with"):
        opened(write(path, rows))
    assert everything(opened(path, text=["captions.raw"])) == {i: (*t, f"another {i}") for i, t in ALL.items()}


def test_shards_of_splits_and_what_is_missing(tmp_path):
    rows = [row(i, caption=f"caption {i}") for i in range(COUNT)]
    rows[1] = {"image": {"bytes": None, "path": "1.png"}, "caption": "caption 1"}
    rows[2]["caption"] = None
    for name, begin in (("train-00000-of-00002", 0), ("train-00001-of-00002", 4), ("validation-00000-of-00001", 8)):
        write(tmp_path / "data" / f"{name}.parquet", rows[begin : begin + 4])
    prepared = opened(tmp_path)
    assert [r["caption"] for r in records(prepared, "valid")] == [f"caption {i}" for i in range(8, 12)]
    assert "splits by the files' names: 2 of train, 1 of valid" in prepared.described
    assert "1 lines without text" in prepared.described
    source = prepared.source()
    with pytest.raises(ValueError, match="there is no picture in it"):
        source[1]
    tar(tmp_path / "x.tar", ("0.png", encoded(pixels(0))), ("0.txt", b"x"))
    with pytest.raises(
        UserError, match=r"holds data/train-00000.* and 1 more: name the one to read|x.tar: name the one"
    ):
        opened(tmp_path)


REALS = [row(i, caption="c", score=i / 7) for i in range(COUNT)]
IDS = [row(i, caption="c", score=f"id{i}") for i in range(30)]
MISTAKES = {
    "no caption": ([row(0, n=1)], {}, r"has no column 'caption', only image, n: choose with PairData.text"),
    "no such column": ([row(0, caption="c")], {"label": "kind"}, r"has no column 'kind', only image, caption: choose"),
    "places beside": ([row(0, caption="c")], {"images": ["."]}, r"PairData.images=.* says nothing of parquet, only of"),
    "real numbers": (REALS, {"label": "score"}, r"'score' holds 12 distinct real numbers, .*: name another with Pair"),
    "ids": (IDS, {"label": "score"}, r"column 'score' holds 30 distinct values in 30 records, .*: name another with P"),
}


@pytest.mark.parametrize("rows, settings, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(rows, settings, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        opened(write(tmp_path / "a.parquet", rows), **settings)
    assert "\n" not in str(error.value)


SETTINGS = {
    "wds": ("group", "split", "image", "label", "second", "images", "image_suffix"),
    "beside": ("images", "image_suffix", "classes", "valid_glob"),
    "tsv": ("classes", "valid_glob"),
}


@pytest.mark.parametrize("kind, setting", [(kind, name) for kind, names in SETTINGS.items() for name in names])
def test_a_setting_that_says_nothing_of_a_source_is_refused(kind, setting, tmp_path):
    files = {f"{i}.{end}": raw for i in range(8) for end, raw in (("png", encoded(pixels(i))), ("txt", b"a caption"))}
    source = {
        "wds": lambda: tar(tmp_path / "x.tar", *files.items()),
        "beside": lambda: zipped(tmp_path / "x.zip", files),
        "tsv": lambda: plain(tmp_path),
    }[kind]()
    opened(source)
    value = {"images": ["x"], "classes": ["x"], "valid": 0.3}.get(setting, "x")
    with pytest.raises(UserError, match=rf"^PairData.{setting}=.* says nothing of {kind}, only of .*: leave it out$"):
        opened(source, **{setting: value})


def test_all_of_them_are_named_at_once_and_scenes_that_stand_in_for_files_tell_of_them(tmp_path):
    settings = {"group": "base", "images": ["x"], "separator": "|"}
    source = tar(tmp_path / "x.tar", *((f"{i}.{end}", raw) for i in range(8)
                 for end, raw in (("png", encoded(pixels(i))), ("txt", b"a caption"))))  # fmt: skip
    message = r"PairData.images=.* and PairData.group='base' say nothing of wds: leave them out"
    with pytest.raises(UserError, match=message):
        opened(source, **settings)
    assert "not read: separator, images, group" in opened("shapes", **settings).note
