"""Pictures in Parquet and Arrow files: columns, splits, classes, shards, and what is wrong with them."""

import io
import json
import pickle

import numpy as np
import pytest

from paradigm.errors import UserError
from tests.vision.pictures import encoded, folder, opened, pixels, records

pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
COUNT = 24
CLASSES = ("cat", "dog", "owl")


def row(i, form="struct", **more):
    raw = encoded(pixels(i))
    return {"image": {"bytes": raw, "path": f"{i}.png"} if form == "struct" else raw, "label": i % 3, **more}


def features(names=CLASSES):
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    return {b"huggingface": json.dumps(told).encode()}


def write(path, rows, metadata=None, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **{"row_group_size": 5} | settings)
    else:
        new = pyarrow.ipc.new_file if path.suffix == ".feather" else pyarrow.ipc.new_stream
        with new(str(path), table.schema) as out:
            out.write_table(table)
    return path


def told(prepared):
    return prepared.described.partition("; ")[2]


@pytest.mark.parametrize("form", ["struct", "bytes"])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_every_picture_is_read_with_its_class(name, form, tmp_path):
    path = write(tmp_path / name, [row(i, form) for i in range(COUNT)], features())
    for source in (path, f"parquet:{path}", tmp_path):
        prepared = pickle.loads(pickle.dumps(opened(source, valid=0.2)))
        found = records(prepared) + records(prepared, "valid")
        assert prepared.classes == CLASSES and len(records(prepared, "valid")) == 6
        key = {pixels(i).tobytes(): i for i in range(COUNT)}
        assert sorted(key[r["image"].tobytes()] for r in found) == list(range(COUNT))
        assert all(key[r["image"].tobytes()] % 3 == r["label"] for r in found)
    assert told(prepared) == "pictures from image; classes from label: cat, dog, owl"
    assert {prepared.source(s).name(0) for s in ("train", "valid")} >= {f"{path} record 1"}
    assert opened(source, labels=False).classes is None


def test_shards_are_splits_by_their_names(tmp_path):
    shard = lambda name, begin, end: write(tmp_path / "data" / name, [row(i, n=0.5) for i in range(begin, end)])
    for name, begin in (("train-00000-of-00002", 0), ("train-00001-of-00002-ab12", 8), ("test-00000-of-00001", 16)):
        shard(f"{name}.parquet", begin, begin + 8)
    (tmp_path / "README.md").write_text("x")
    prepared = opened(tmp_path)
    for split, begin, count in (("train", 0, 16), ("test", 16, 8)):
        assert [r["image"].tobytes() for r in records(prepared, split)] == [
            pixels(i).tobytes() for i in range(begin, begin + count)
        ]
    assert told(prepared) == (
        "pictures from image; classes from label: 0, 1, 2; splits by the files' names: 1 of test, 2 of train; "
        "columns left out: n"
    )
    for name in ("train-00000-of-00002", "train-00001-of-00002-ab12"):
        (tmp_path / "data" / f"{name}.parquet").rename(
            tmp_path / "data" / f"{name.replace('train', 'validation')}.parquet"
        )
    with pytest.raises(UserError, match=r"of which none is of train: add that, or name the file to train on$"):
        opened(tmp_path)


def test_what_the_datasets_library_saves_and_a_column_of_splits(tmp_path):
    for split, begin in (("train", 0), ("test", 16)):
        write(
            tmp_path / "d" / split / "data-00000-of-00001.arrow", [row(i) for i in range(begin, begin + 8)], features()
        )
        for name in ("dataset_info.json", "state.json"):
            (tmp_path / "d" / split / name).write_text("{}")
    (tmp_path / "d" / "dataset_dict.json").write_text("{}")
    prepared = opened(tmp_path / "d")
    assert {s: len(prepared.source(s)) for s in ("train", "test")} == {"train": 8, "test": 8}
    rows = [row(i, split="train" if i < 9 else "dev") for i in range(COUNT)]
    prepared = opened(write(tmp_path / "one.parquet", rows))
    assert {s: len(prepared.source(s)) for s in ("train", "valid")} == {"train": 9, "valid": COUNT - 9}
    assert "splits from split" in told(prepared)


def test_other_names_and_missing_pictures(tmp_path):
    rows = [{"img": row(i)["image"], "fine_label": f"c{i % 2}", "coarse_label": 0} for i in range(COUNT)]
    rows[3]["img"], rows[4]["img"], rows[5]["fine_label"] = None, {"bytes": b"no picture", "path": ""}, None
    path = write(tmp_path / "a.parquet", rows)
    prepared = opened(path)
    assert prepared.classes is None
    assert "pictures from img; columns left out: fine_label, coarse_label; of " in told(prepared)
    prepared = opened(path, label_field="fine_label", valid=0.1)
    assert prepared.classes == ("c0", "c1") and "1 of train without a label" in told(prepared)
    source = {**{prepared.source(s).name(k): (prepared.source(s), k)
                 for s in ("train", "valid") for k in range(len(prepared.source(s)))}}  # fmt: skip
    for number, message in ((4, "there is no picture in it"), (5, "cannot identify image file")):
        broken, k = source[f"{path} record {number}"]
        with pytest.raises(ValueError, match=message):
            broken[k]


REALS = [row(i) | {"label": i / 7} for i in range(COUNT)]
PLAIN = [{"image": "0.png", "label": 0}]
IDS = [row(i) | {"label": f"id{i}"} for i in range(COUNT)]
LISTS = [row(i) | {"label": [1]} for i in range(3)]
FIELD = {"label_field": "kind"}
MISTAKES = {
    "no pictures": (PLAIN, {}, r"no column of pictures .*'image'; it has image \(string\), label \(int64\): write th"),
    "two columns": ([{"a": b"x", "b": b"y"}], {}, r"several columns of pictures \(.*b \(binary\): choose with Image"),
    "another label": ([row(0)], FIELD, r"has no column 'kind', only image, label: choose with ImageData.label_field"),
    "real numbers": (REALS, {}, r"'label' holds 24 distinct real numbers, such as 0.14\d+, which are no classes: ch"),
    "ids": (IDS, {}, r"'label' holds 24 distinct values in 24 records, such as 'id0', which are no classes: choose"),
    "lists": (LISTS, {}, r"the column 'label' holds a list, such as \[1\], which is no class: choose with ImageData"),
    "few names": (REALS[:1] + [row(1)], {"classes": ["a"]}, r"names 1 classes and .* 'label' has number 1: name all"),
    "no picture": ([{"image": b"x", "label": 0}] * 3, {}, r"none of 3 pictures looked at .*a.parquet record 1 \("),
}


@pytest.mark.parametrize("rows, settings, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(rows, settings, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        opened(write(tmp_path / "a.parquet", rows), **settings)
    assert "\n" not in str(error.value)


def test_files_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.parquet", [row(i) for i in range(4)])
    write(tmp_path / "b.parquet", [row(i, more=1) for i in range(4)])
    with pytest.raises(
        UserError, match=r"a.parquet and .*b.parquet have other columns \(more\): name the files of one"
    ):
        opened(tmp_path)
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"b.parquet: cannot be read \(.*\): fetch or write it again"):
        opened(tmp_path)
    folder(tmp_path, {"b.parquet": b"", "preview.png": pixels(0)})
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(UserError, match=r"holds preview.png and pictures in a.parquet: write folder:.* or parquet:"):
        opened(tmp_path)


def test_a_row_group_too_large_for_the_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", [row(i) for i in range(COUNT)], row_group_size=COUNT)
    monkeypatch.setattr("vision.embedded._GROUP_BYTES", 1000)
    with pytest.raises(UserError, match=r"GB of pictures in one row group, all of which .*row_group_size=100\)$"):
        opened(path)


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
    """However they are asked for, the pictures are the same."""
    path = write(tmp_path / "a.parquet", [row(i) for i in range(COUNT)])
    monkeypatch.setattr("vision.embedded.CACHED", 1)
    source = opened(path).source()
    order = np.random.default_rng(0).permutation(len(source))
    assert {source[k]["image"].tobytes() for k in order} == {source[k]["image"].tobytes() for k in range(len(source))}
    assert io.BytesIO(source.records.source.files.read("a.parquet#7")).getvalue() == encoded(pixels(7))
