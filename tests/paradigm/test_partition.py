"""Rules, their errors, and inheritance by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from paradigm import partition
from paradigm.errors import UserError
from tests import contract

F32 = np.float32


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, F32)


TREE = {"decoder": {"layers": {"mlp": {"kernel": shape(3, 8, 16)}, "norm": {"scale": shape(3, 8)}}}}
RULES = ((r"mlp/kernel$", ("fsdp", "tensor")),)


def specs(tree, rules, user_rules=()):
    return {
        name: tuple(s.spec)
        for name, s in partition.trees.named_leaves(
            partition.shardings(tree, rules, contract.mesh_of("mixed"), user_rules)
        )
    }


def test_stacked_layers_get_none_and_vectors_are_replicated():
    assert specs(TREE, RULES) == {
        "decoder/layers/mlp/kernel": (None, "fsdp", "tensor"),
        "decoder/layers/norm/scale": (),
    }


def test_first_match_wins_and_user_rules_come_first():
    two = RULES + ((r"kernel$", (None, "tensor")),)
    assert specs(TREE, two)["decoder/layers/mlp/kernel"] == (None, "fsdp", "tensor")
    user = ((r"kernel$", (None, "tensor")),)
    assert specs(TREE, RULES, user)["decoder/layers/mlp/kernel"] == (None, None, "tensor")


def test_an_unmatched_matrix_is_an_error():
    with pytest.raises(UserError, match=r"no partition rule matches decoder/layers/mlp/kernel of shape \(3, 8, 16\)"):
        specs(TREE, ())


def test_a_user_rule_without_a_match_is_an_error():
    with pytest.raises(UserError, match=r"partition rule 'mpl/kernel' matches no parameter"):
        specs(TREE, RULES, (("mpl/kernel", ("fsdp",)),))


def test_a_dim_that_does_not_divide_is_an_error():
    tree = {"mlp": {"kernel": shape(8, 7)}}
    with pytest.raises(
        UserError, match=r"mlp/kernel of shape \(8, 7\): dim 7 does not divide over mesh axis 'tensor' of 2"
    ):
        specs(tree, RULES)


@pytest.mark.parametrize("rule, size, spec", [
    ("fsdp?", 6, "fsdp"),
    ("fsdp?", 7, None),
    (("tensor", "fsdp?"), 8, ("tensor", "fsdp")),
    (("tensor", "fsdp?"), 6, "tensor"),
])  # fmt: skip
def test_a_marked_axis_cuts_what_it_divides_and_is_left_out_elsewhere(rule, size, spec):
    found = specs({"lora_b": shape(3, size)}, ((r"lora_b$", (None, rule)),))
    assert found["lora_b"] == (None, spec)


def test_what_is_computed_with_is_whole_along_a_marked_axis():
    rule = (None, ("tensor", "fsdp?"))
    with jax.set_mesh(contract.mesh_of("mixed")):
        x = jax.device_put(jnp.ones((3, 8)), jax.NamedSharding(contract.mesh_of("mixed"), P(None, ("tensor", "fsdp"))))
        assert jax.jit(lambda x: partition.gathered(x, rule))(x).sharding.spec == P(None, "tensor")
    assert partition.gathered(x, rule) is x  # without a mesh


def test_a_rule_longer_than_the_shape_is_an_error():
    with pytest.raises(UserError, match="has 2 axes .* fewer dims"):
        specs({"mlp": {"kernel": shape(8)}}, RULES)


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(UserError, match=r"a batch of 6 does not divide over data x fsdp = 2 x 2.*multiple of 4"):
        partition.batch_shardings({"x": shape(6, 2)}, contract.mesh_of("mixed"))


def test_factored_moments_drop_the_reduced_axis():
    params = {"a/kernel": ((3, 8, 16), jax.sharding.PartitionSpec(None, "fsdp", "tensor"))}
    inherited = lambda name, dims: tuple(partition._inherited(name, dims, params))
    assert inherited("mu/a/kernel", (3, 8, 16)) == (None, "fsdp", "tensor")
    assert inherited("v_row/a/kernel", (3, 8)) == (None, "fsdp")
    assert inherited("v_col/a/kernel", (3, 16)) == (None, "tensor")
    assert inherited("count", ()) == ()
    square = {"layers/kernel": ((8, 8, 8), jax.sharding.PartitionSpec(None, "fsdp", "tensor"))}
    assert tuple(partition._inherited("v_row/layers/kernel", (8, 8), square)) == (None, "fsdp")
    assert tuple(partition._inherited("v_col/layers/kernel", (8, 8), square)) == (None, "tensor")


@pytest.mark.parametrize("rows, shares", [(8, 2), (179, 179)])
def test_rows_that_an_evaluator_looks_at_need_not_divide(rows, shares):
    with jax.set_mesh(contract.mesh_of("mixed")):
        laid = partition.constrain_rows(jnp.ones((rows, 2)))
    assert laid.sharding.shard_shape(laid.shape) == (shares, 2)


def test_constrain_is_the_identity_without_a_mesh():
    x = np.ones((4, 2), F32)
    assert partition.constrain(x, partition.BATCH, None) is x
