"""Trees by path, and merging strictly or in part."""

import numpy as np
import pytest

from paradigm import teacher, trees
from paradigm.errors import UserError

TREE = {"a": {"kernel": np.ones((2, 3), np.float32)}, "layers": {"bias": np.zeros((4, 3), np.float32)}}


def test_names_and_tables():
    assert [n for n, _ in trees.named_leaves(TREE)] == ["a/kernel", "layers/bias"]
    assert trees.named_map(lambda n, x: n, TREE)["a"]["kernel"] == "a/kernel"
    assert trees.is_stacked("decoder/layers/bias") and not trees.is_stacked("decoder/layers_norm/bias")
    nested = trees.nested(dict(trees.named_leaves(TREE)))
    assert nested.keys() == TREE.keys() and nested["a"]["kernel"] is TREE["a"]["kernel"]
    table = ((r"bias$", 0.0), (r"a/", 2.0))
    assert trees.first_match((("kernel$", 2.0),), "a/kernel") == 2.0  # found anywhere, not at the start alone
    assert trees.first_match(table, "a/bias") == 0.0 and trees.first_match(table, "b/kernel", 1.0) == 1.0


def test_stack_puts_layers_in_front():
    layers = [{"w": np.full((2,), i)} for i in range(3)]
    stacked = trees.stack(layers)
    assert stacked["w"].shape == (3, 2)
    np.testing.assert_array_equal(stacked["w"][2], layers[2]["w"])


def test_strict_merge_names_leaf_wanted_and_found():
    found = {"a": {"kernel": np.ones((2, 4))}, "b": np.ones(1)}
    with pytest.raises(UserError) as error:
        trees.merge_strict(TREE, found, where="runs/x, step 5")
    text = str(error.value)
    assert "runs/x, step 5 does not fit the model" in text
    assert "layers/bias: wanted (4, 3) float32, found nothing" in text
    assert "b: wanted nothing, found (1,)" in text
    assert "a/kernel: wanted (2, 3), found (2, 4)" in text
    assert trees.merge_strict(TREE, TREE)["a"]["kernel"] is TREE["a"]["kernel"]


def test_partial_merge_reports_and_refuses_nothing_matched():
    found = {"a": {"kernel": 2 * np.ones((2, 3))}, "layers": {"bias": np.ones(5)}, "more": np.ones(1)}
    merged, report = trees.merge_partial(TREE, found)
    assert merged["a"]["kernel"][0, 0] == 2 and merged["layers"]["bias"] is TREE["layers"]["bias"]
    assert str(report) == "1 matched, 1 missing, 2 unexpected"
    with pytest.raises(UserError, match=r"no leaf of old/run matches the model: it wants \['a/kernel'"):
        trees.merge_partial(TREE, {"x": np.ones(3)}, where="old/run")


def test_queue_is_a_ring():
    queue, cursor = np.zeros((6, 2), np.float32), np.int32(4)
    queue, cursor = teacher.push(queue, cursor, np.ones((2, 2), np.float32))
    assert cursor == 0 and queue[4:].min() == 1 and queue[:4].max() == 0
    with pytest.raises(ValueError, match="queue of 6 is not a multiple of the batch of 4"):
        teacher.push(queue, cursor, np.ones((4, 2)))
