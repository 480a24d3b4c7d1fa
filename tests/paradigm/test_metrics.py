"""Metrics merge exactly; peaks are those of the data sheets, or measured on a CPU."""

import math
import time
import types

import jax
import numpy as np
import pytest

from paradigm.metrics import Artefact, bits, mean, merge, peak_flops


def test_parts_merge_to_the_whole():
    """Any split of unequal weights gives the same sums, and not the mean of means."""
    r = np.random.default_rng(0)
    values, weights = r.normal(size=1000).astype(np.float32), r.integers(0, 5, 1000).astype(np.float32)
    part = lambda s: {"loss": (np.float32(values[s] @ weights[s]), np.float32(weights[s].sum()))}
    parts = [part(slice(a, b)) for a, b in [(0, 1), (1, 700), (700, 1000)]]
    whole = merge(part(slice(0, 1000)))
    merged = merge(*parts)
    assert merged["loss"][1] == whole["loss"][1] == weights.sum()
    np.testing.assert_allclose(merged["loss"][0], whole["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(mean(*merged["loss"]), np.average(values, weights=weights), rtol=1e-5)
    assert abs(mean(*merged["loss"]) - np.mean([mean(*p["loss"]) for p in parts])) > 1e-3


def test_sums_do_not_drown():
    """2^24 + 1 + 1 ... would stay 2^24 in float32."""
    ones = [{"tokens": (np.float32(1), np.float32(1))}] * 5
    assert merge({"tokens": (np.float32(2**24), np.float32(2**24))}, *ones)["tokens"] == (2**24 + 5, 2**24 + 5)


def test_names_of_one_part_only_are_kept():
    assert merge({"a": (1, 2)}, {"b": (3, 4)}, {"a": (5, 6)}, {}) == {"a": (6.0, 8.0), "b": (3.0, 4.0)}


def test_derived_numbers():
    assert mean(3, 4) == 0.75 and math.isnan(mean(0, 0))
    np.testing.assert_allclose(bits(8 * math.log(2), 4), 2.0)


def test_artefacts_are_of_three_kinds():
    assert Artefact("a", "text", "x").value == "x"
    with pytest.raises(ValueError, match="Artefact 'a': kind 'txt' must be 'text', 'image' or 'table'"):
        Artefact("a", "txt", "x")


@pytest.mark.parametrize(
    "kind, flops",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("Another kind", 0.0),
    ],
)
def test_listed_peaks(kind, flops):
    assert peak_flops(types.SimpleNamespace(platform="accelerator", device_kind=kind)) == flops


def test_a_cpu_is_measured_once_and_shared_between_its_devices():
    """At least as fast as a product timed here, within what a busy machine allows; measured again, no slower."""
    first = peak_flops()
    start = time.perf_counter()
    assert peak_flops(jax.devices()[-1]) == first and time.perf_counter() - start < 0.1
    x = np.ones((1024, 1024), np.float32)
    start = time.perf_counter()
    x @ x
    rate = 2 * 1024**3 / (time.perf_counter() - start)
    assert 0.05 * rate < first * jax.device_count() < 1e15
    assert first <= peak_flops(again=True) < 1e15
