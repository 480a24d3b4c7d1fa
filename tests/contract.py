"""paradigm.testing, which every objective must pass, and what of it is for pytest alone."""

import functools

import pytest

from paradigm.testing import (
    MESHES,
    UnitStep,
    assert_trees_close,
    assert_trees_equal,
    check_abstract,
    check_microbatches,
    check_resume,
    check_sharding,
    check_weights,
    gradients,
    mesh_of,
    run,
)

__all__ = [
    "UnitStep",
    "assert_trees_close",
    "assert_trees_equal",
    "check_abstract",
    "check_microbatches",
    "check_resume",
    "check_sharding",
    "check_weights",
    "every_mesh",
    "gradients",
    "mesh_of",
    "one_by_one",
    "run",
]

# "mixed" cuts along every axis at once; the others are left to `make test-all`.
every_mesh = pytest.mark.parametrize(
    "mesh", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "mixed")) for kind in MESHES]
)

# All checks of one objective before those of the next, so that they share what is compiled.
one_by_one = functools.partial(pytest.mark.parametrize, scope="module")
