"""What every objective passes, as tests: a file of tests lists its objectives and gets them all.

    globals().update(contract.tests({"mae": contract.Case(mae(), BATCH, "patches", masked)}))

Resume, sharding and cutting are mostly the mechanism's, and their programs the dearest: in `make test` one objective of
a kind goes through them, that of STANDS_FOR; in `make test-all` each does, on every mesh. What compiles no step each
goes through in both; that each step traces on a mesh is seen in `make test` where its toy run is
(tests/launch/test_configs.py).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest

from paradigm.testing import (
    MESHES,
    UnitStep,
    assert_trees_close,
    assert_trees_equal,
    check_abstract,
    check_batches,
    check_microbatches,
    check_resume,
    check_shapes,
    check_sharding,
    check_weights,
    gradients,
    mesh_of,
    run,
)

__all__ = [
    "STANDS_FOR",
    "Case",
    "UnitStep",
    "assert_trees_close",
    "assert_trees_equal",
    "check_abstract",
    "check_batches",
    "check_microbatches",
    "check_resume",
    "check_shapes",
    "check_sharding",
    "check_weights",
    "every_mesh",
    "gradients",
    "mesh_of",
    "one_by_one",
    "run",
    "tests",
]

# What of an objective has to come out right resumed, on a mesh, in microbatches -> who shows it in `make test`.
STANDS_FOR = {
    # a mean over tokens or patches, by what reads them
    "encoder": "masked_lm",
    "decoder": "next_token",
    "encoder-decoder": "span_corruption",
    "two encoders": "electra",
    "labels of texts": "class",
    "patches": "mae",
    "frozen module": "beit",
    "captions": "cappa",
    "one stream": "vilt",  # and a batch whose texts were exchanged before it was cut
    # every row against every other
    "texts that are compared": "simcse",
    "views that are compared": "simclr",
    "towers": "clip",
    "towers, a pair alone": "siglip",
    "towers and captions": "coca",
    "dimensions that are compared": "BarlowTwins",
    "rows that are mixed": "deit",
    # state beside the parameters
    "BatchNorm": "resnet",
    "teacher": "data2vec",
    "teacher and comparison": "moco_v3",
    "teacher and BatchNorm": "BYOL",
    "teacher and queue": "moco",
    "teacher and centre": "DINOv2",
    "balanced assignments": "SwAV",
    "codebook": "vq",
    "counts": "c_rts",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective and what it is checked on.

    batch_of: step -> batch. kind: of STANDS_FOR. masked: the same with padding, for what cuts and weighs.
    microbatches: on a mesh. parts: that a batch is cut into on one device, () of what may not be. meshes: of MESHES.
    variant: a setting of another objective of the table, left to `make test-all` whole.
    """

    objective: Any
    batch_of: Callable
    kind: str
    masked: Callable | None = None
    microbatches: int = 2
    parts: tuple = (4,)
    meshes: tuple = tuple(MESHES)
    variant: bool = False

    def __post_init__(self):
        if self.kind not in STANDS_FOR:
            raise ValueError(
                f"{self.kind!r} is no kind of tests/contract.py: {', '.join(STANDS_FOR)}; or add a line there"
            )
        if self.masked is None:
            object.__setattr__(self, "masked", self.batch_of)


# "mixed" cuts along every axis at once; the others are left to `make test-all`.
every_mesh = pytest.mark.parametrize(
    "mesh", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "mixed")) for kind in MESHES]
)

# All checks of one objective before those of the next, so that they share what is compiled.
one_by_one = functools.partial(pytest.mark.parametrize, scope="module")


def tests(cases: dict[str, Case]) -> dict[str, Callable]:
    """{name: test} of these cases, for the `globals()` of a file of tests."""

    def those(fast):
        marks = lambda name, case: [pytest.mark.slow] * (not fast(name, case))
        return one_by_one("name", [pytest.param(name, marks=marks(name, case)) for name, case in cases.items()])

    every = those(lambda name, case: not case.variant)
    stand_ins = those(lambda name, case: STANDS_FOR[case.kind] == name)

    @stand_ins
    def test_resume(name):
        check_resume(cases[name].objective, UnitStep(), cases[name].batch_of)

    @pytest.mark.slow
    @one_by_one("name", [name for name, case in cases.items() if case.parts])
    def test_microbatches(name):
        check_microbatches(cases[name].objective, cases[name].masked, cases[name].parts)

    @stand_ins
    @every_mesh
    def test_sharding(name, mesh):
        case = cases[name]
        if mesh not in case.meshes:
            pytest.skip("its rounding adds up on this mesh")
        check_sharding(case.objective, case.masked, mesh, microbatches=case.microbatches)

    @every
    def test_batches(name):
        check_batches(cases[name].objective, cases[name].batch_of)

    @pytest.mark.slow
    @one_by_one("name", list(cases))
    def test_shapes(name):
        check_shapes(cases[name].objective, cases[name].batch_of)

    @stand_ins
    def test_abstract(name):
        case, size = cases[name], len(cases[name].batch_of(0)["index"])
        check_abstract(case.objective, UnitStep(), case.batch_of, size, microbatches=case.microbatches)

    @every
    def test_weights(name):
        check_weights(cases[name].objective, cases[name].masked)

    return {name: test for name, test in locals().items() if name.startswith("test_")}
