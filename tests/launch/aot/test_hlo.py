# ruff: noqa: E501 (a compiler's lines)
"""What is read from a compiled program: against XLA's own count where it is right, and by hand where it is not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.aot import hlo, hlo_text
from launch.run.mesh import make_mesh

L, D, F = 5, 16, 48


def compiled(fn, *args, **how):
    return jax.jit(fn, **how).lower(*args).compile()


def layers(scan):
    """Five layers, scanned or not, of two products each."""

    def turn(x, w):
        return jnp.tanh(x @ w["in"]) @ w["out"], None

    def fn(x, w):
        if scan:
            return jax.lax.scan(turn, x, w)[0]
        for n in range(L):
            x, _ = turn(x, jax.tree.map(lambda a: a[n], w))
        return x

    return fn


X = jax.ShapeDtypeStruct((8, D), jnp.float32)
W = {"in": jax.ShapeDtypeStruct((L, D, F), jnp.float32), "out": jax.ShapeDtypeStruct((L, F, D), jnp.float32)}
WANTED = L * 2 * 8 * D * F * 2


@pytest.mark.parametrize("scan", [False, True])
def test_a_loop_counts_as_often_as_it_turns(scan):
    found = compiled(layers(scan), X, W)
    assert hlo.cost(found.as_text()).flops == WANTED
    if scan:  # what makes this file necessary
        assert found.cost_analysis()["flops"] < WANTED / 2


def test_loops_in_loops_and_the_dearer_branch():
    def fn(x, w):
        outer = lambda x, _: (jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], None)
        x = jax.lax.scan(outer, x, None, length=3)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0], lambda: x)

    w = jax.ShapeDtypeStruct((L, D, D), jnp.float32)
    assert hlo.cost(compiled(fn, X, w).as_text()).flops == (3 * L + 1) * 2 * 8 * D * D


# A product over a ring of eight devices, both ways at once, as the TPU's partitioner writes it: two products a turn.
RING = """HloModule jit_step, is_scheduled=true, num_partitions=8

%condition (p.0: (u32[], f32[16,32], f32[32,64], f32[16,64])) -> pred[] {
  %bound = u32[] constant(8)
  %p.0 = (u32[], f32[16,32], f32[32,64], f32[16,64]) parameter(0)
  %turn.0 = u32[] get-tuple-element(%p.0), index=0
  ROOT %compare = pred[] compare(%turn.0, %bound), direction=LT
}

%body (p.1: (u32[], f32[16,32], f32[32,64], f32[16,64])) -> (u32[], f32[16,32], f32[32,64], f32[16,64]) {
  %p.1 = (u32[], f32[16,32], f32[32,64], f32[16,64]) parameter(0)
  %turn.1 = u32[] get-tuple-element(%p.1), index=0
  %step = u32[] constant(2)
  %next = u32[] add(%turn.1, %step)
  %x = f32[16,32] get-tuple-element(%p.1), index=1
  %w = f32[32,64] get-tuple-element(%p.1), index=2
  %one = f32[16,64] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %two = f32[16,64] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[16,64] add(%one, %two)
  ROOT %t.1 = (u32[], f32[16,32], f32[32,64], f32[16,64]) tuple(%next, %x, %w, %sum)
}

ENTRY %main (t.0: (u32[], f32[16,32], f32[32,64], f32[16,64])) -> (u32[], f32[16,32], f32[32,64], f32[16,64]) {
  %t.0 = (u32[], f32[16,32], f32[32,64], f32[16,64]) parameter(0)
  ROOT %while.0 = (u32[], f32[16,32], f32[32,64], f32[16,64]) while(%t.0), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize("step, turns", [(2, 4), (1, 8), (3, 3)])
def test_a_loop_turns_as_often_as_its_counter_and_what_is_added_to_it_say(step, turns):
    assert hlo.cost(RING.replace("constant(2)", f"constant({step})")).flops == turns * 2 * (2 * 16 * 32 * 64)


@pytest.mark.parametrize("how", [
    dict(window_strides=(2, 2), padding="SAME"),
    dict(window_strides=(1, 1), padding="VALID"),
    dict(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 2)),
    dict(window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(3, 3)),
    dict(window_strides=(1, 1), padding="SAME", feature_group_count=4),
])  # fmt: skip
def test_convolutions_as_xla_counts_them(how):
    x = jax.ShapeDtypeStruct((2, 9, 9, 8), jnp.float32)
    k = jax.ShapeDtypeStruct((3, 3, 8 // how.get("feature_group_count", 1), 12), jnp.float32)
    fn = lambda x, k: jax.lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)
    lowered = jax.jit(fn).lower(x, k)
    found = hlo.cost(lowered.compile().as_text()).flops
    assert found == pytest.approx(lowered.cost_analysis()["flops"], rel=1e-6)


# As the TPU compiler writes a product with two batch dims and a scan's condition: windows whose taps mostly meet holes.
TPU = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[8,16,1024,128], bf16[8,16,2048,128])) -> (s32[], bf16[8,16,1024,128], bf16[8,16,2048,128]) {
  %p = (s32[]{:T(128)}, bf16[8,16,1024,128]{3,2,1,0:T(8,128)(2,1)}, bf16[8,16,2048,128]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %q = bf16[8,16,1024,128]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %k = bf16[8,16,2048,128]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %w.2 = bf16[32,64]{1,0:T(8,128)S(1)} constant({...})
  %scores = bf16[8,16,1024,2048]{3,2,1,0:T(8,128)(2,1)S(1)} convolution(%q, %k), window={size=8x16 stride=7x15 lhs_dilate=8x16}, dim_labels=01bf_01oi->01bf, metadata={op_name="jit(step)/dot_general"}
  %step = bf16[128,64]{1,0:T(8,128)S(1)} fusion(%w.2), kind=kCustom, calls=%gather-step
  ROOT %t = (s32[]{:T(128)}, bf16[8,16,1024,128]{3,2,1,0}, bf16[8,16,2048,128]{3,2,1,0}) tuple(%i, %q, %k)
}

%condition (p.1: (s32[], bf16[8,16,1024,128], bf16[8,16,2048,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(20)
  %p.1 = (s32[]{:T(128)}, bf16[8,16,1024,128]{3,2,1,0}, bf16[8,16,2048,128]{3,2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

%all-reduce-scatter.1 (g: f32[2048,32]) -> f32[2048,32] {
  %g = f32[2048,32]{1,0:T(8,128)} parameter(0)
  ROOT %all-reduce.1 = f32[2048,32]{1,0:T(8,128)} all-reduce(%g), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
}

%gather-start (w: bf16[32,64]) -> bf16[128,64] {
  %w = bf16[32,64]{1,0:T(8,128)} parameter(0)
  %all-gather.1 = bf16[128,64]{1,0:T(8,128)} all-gather(%w), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %begun = (bf16[32,64]{1,0:T(8,128)}, bf16[128,64]{1,0:T(8,128)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%gather-step (w.3: bf16[32,64]) -> bf16[128,64] {
  %w.3 = bf16[32,64]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %all-gather.3 = bf16[128,64]{1,0:T(8,128)S(1)} all-gather(%w.3), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

%gather-done (w.1: bf16[32,64]) -> bf16[128,64] {
  %w.1 = bf16[32,64]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.2 = bf16[128,64]{1,0:T(8,128)} all-gather(%w.1), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

ENTRY %main (q.0: bf16[8,16,1024,128], k.0: bf16[8,16,2048,128], g.0: f32[2048,32], w.0: bf16[32,64]) -> f32[] {
  %zero = s32[]{:T(128)} constant(0)
  %q.0 = bf16[8,16,1024,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k.0 = bf16[8,16,2048,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %g.0 = f32[2048,32]{1,0:T(8,128)} parameter(2)
  %w.0 = bf16[32,64]{1,0:T(8,128)} parameter(3)
  %t.0 = (s32[]{:T(128)}, bf16[8,16,1024,128]{3,2,1,0}, bf16[8,16,2048,128]{3,2,1,0}) tuple(%zero, %q.0, %k.0)
  %while.1 = (s32[]{:T(128)}, bf16[8,16,1024,128]{3,2,1,0}, bf16[8,16,2048,128]{3,2,1,0}) while(%t.0), condition=%condition, body=%body
  %s = f32[2048,32]{1,0:T(8,128)} fusion(%g.0), kind=kCustom, calls=%all-reduce-scatter.1
  %a = bf16[128,64]{1,0:T(8,128)} fusion(%w.0), kind=kCustom, calls=%gather-start
  %b = bf16[128,64]{1,0:T(8,128)} fusion(%w.0), kind=kCustom, calls=%gather-done
  %a.1 = f32[12,8,128]{2,1,0:T(8,128)} broadcast(%zero), dimensions={}
  %r = f32[] all-reduce(%zero), channel_id=3, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %token = token[] after-all()
  %send = (f32[12,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%a.1, %token), channel_id=10, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %x = f32[] convert(%zero)
}
"""


def test_a_tpu_program_by_hand():
    found = hlo.cost(TPU, devices_per_slice=4)
    assert found.flops == 20 * 2 * 8 * 16 * 1024 * 2048 * 128
    one = {c.kind: c for c in found.collectives}
    assert one["reduce-scatter"].payload == 2048 * 32 * 4 and one["reduce-scatter"].wire == 2048 * 32 * 4 * 3 / 4
    assert one["all-gather"].payload == 4 * 32 * 64 * 2 and one["all-gather"].times == 1  # start, steps and done
    assert len(found.collectives) == 4
    # 0 and 4 lie in different slices; hosts do the rest of what a chip sends them.
    assert [c.kind for c in found.collectives if c.crosses] == ["all-reduce", "all-reduce between slices"]
    assert one["all-reduce between slices"].wire == 2 / 2 * 12 * 8 * 128 * 4
    assert one["all-reduce"].wire == 2 * 4 / 2
    # The loop reads q and k and keeps the scores on the chip; then fusions: g in and out, w in and out, twice.
    q, k, g, w = 8 * 16 * 1024 * 128 * 2, 8 * 16 * 2048 * 128 * 2, 2048 * 32 * 4, 32 * 64 * 2
    assert found.memory == pytest.approx(20 * (q + k) + 2 * g + 2 * 5 * w + 12 * 8 * 128 * 4, abs=300)


SPLASH = """\
ENTRY %main (q: bf16[2,4,2048,128], k: bf16[2,2,2048,128]) -> bf16[2,4,2048,128] {
  %q = bf16[2,4,2048,128]{3,2,1,0} parameter(0)
  %k = bf16[2,2,2048,128]{3,2,1,0} parameter(1)
  %m = s8[1,4,4]{2,1,0} parameter(2)
  %l = f32[2,4,8,2048]{3,2,1,0:S(1)} parameter(3)
  %splash_mha_fwd_residuals.2 = bf16[2,4,2048,128]{3,2,1,0} custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256, \\"block_kv\\": 512}"
}}, metadata={op_name="jit(step)/splash_share_0.6250/vmap(static_sparsity_splash)/pallas_call"}
  ROOT %splash_mha_dkv_no_residuals.1 = bf16[2,4,2048,128]{3,2,1,0} custom-call(%m, %q, %k, %k, %l, /*index=5*/%q, %l), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256, \\"block_kv\\": 512}"
}}, metadata={op_name="jit(step)/splash_share_0.6250/vmap(static_sparsity_splash)/pallas_call"}
}
"""


@pytest.mark.parametrize("rows", [2, 1])
def test_splash_attention_counts_by_formula(rows):
    """Of one row, the kernel's arrays have no axis for rows."""
    found = hlo.cost(SPLASH if rows == 2 else re.sub(r"(f\d+)\[2,", r"\1[", SPLASH))
    product = 2 * rows * 4 * 2048 * 2048 * 128  # of all queries and keys
    assert found.flops == 0.625 * (2 + 4) * product
    q, k, mask = rows * 4 * 2048 * 128 * 2, rows * 2 * 2048 * 128 * 2, 16
    once = (q + 2 * k + mask + q) + (q + 2 * k + q + mask + q)
    # Each query head reads the keys it sees in 512s, the backward pass queries and gradients in 256s.
    again = (0.625 * 4 - 1) * 2 * (2 * k) + (0.625 * 8 - 1) * 2 * q
    assert found.memory == once + again


def test_each_turn_of_a_ring_counts():
    """Unrolled, its permutes may share a channel; none is another's repetition."""
    permute = "collective-permute(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}"
    lines = [f"  {root}%p.{n} = f32[8]{{0}} {permute}" for n, root in enumerate(("", "", "ROOT "))]
    text = "\n".join(["ENTRY %main (x: f32[8]) -> f32[8] {", "  %x = f32[8]{0} parameter(0)", *lines, "}"])
    assert hlo.by_kind(hlo.cost(text).collectives) == {"collective-permute": {"count": 3, "bytes": 96, "largest": 32}}


def test_what_shard_map_writes_shares_a_channel_and_each_of_it_counts():
    """Keys, values and a gradient by one channel: told from another by kind and line; what stands twice counts once."""
    line = 'channel_id=1, replica_groups={{0,1}}, dimensions={0}, metadata={op_name="own/%s" stack_frame_id=%d}'
    lines = ["HloModule jit_step, num_partitions=2", "", "ENTRY %main (x: f32[8]) -> f32[16] {"]
    lines += ["  %x = f32[8]{0} parameter(0)", f"  %s = f32[4]{{0}} reduce-scatter(%x), {line % ('gather', 3)}"]
    for n, frame in enumerate((3, 4, 4)):
        lines.append(f"  {'ROOT ' * (n == 2)}%g.{n} = f32[16]{{0}} all-gather(%x), {line % ('gather', frame)}")
    found = hlo.by_kind(hlo.cost("\n".join([*lines, "}"])).collectives)
    assert {kind: one["count"] for kind, one in found.items()} == {"all-gather": 2, "reduce-scatter": 1}


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}, x", [[3, 1], [2, 0]]),
    ("replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'b'}, x", [[0, 3], [1, 4], [2, 5]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([4]) {'a'}, x", [[0, 2], [1, 3]]),
    ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
    ("dimensions={0}", []),
])  # fmt: skip
def test_groups(text, groups):
    assert hlo_text.groups_of(text) == groups


def test_groups_that_are_not_named_and_that_cannot_be_read():
    """All of the program's devices; and no guess."""
    text = """HloModule step, num_partitions=6

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}"""
    (found,) = hlo.cost(text).collectives
    assert found.devices == 6 and found.wire == 2 * 5 / 6 * 32
    with pytest.raises(ValueError, match="all-reduce.1: cannot read which devices"):
        hlo.cost(text.replace("={}", "=another_form"))


@pytest.mark.parametrize(("labels", "kernel"), [("01bf_01io->01bf", "3,5"), ("10bf_10io->10bf", "5,3")])
def test_a_window_has_its_dims_in_order_whatever_the_labels(labels, kernel):
    """A kernel of 3 by 5 over 4 x 8 places with no padding, stretched by 1: 2 x 4 outputs of 3 x 5 taps each."""
    order = slice(None, None, 1 if labels[0] == "0" else -1)
    dims = lambda *sizes: ",".join(map(str, sizes[order]))
    text = f"""ENTRY %main (x: f32[{dims(4, 8)},7,2], w: f32[{kernel},2,6]) -> f32[{dims(2, 4)},7,6] {{
  %x = f32[{dims(4, 8)},7,2]{{3,2,1,0}} parameter(0)
  %w = f32[{kernel},2,6]{{3,2,1,0}} parameter(1)
  ROOT %y = f32[{dims(2, 4)},7,6]{{3,2,1,0}} convolution(%x, %w), window={{size=3x5}}, dim_labels={labels}
}}"""
    assert hlo.cost(text).flops == 2 * (2 * 4) * (3 * 5) * 7 * 2 * 6


def test_a_fusion_in_a_fusion_reads_and_writes_its_slice():
    text = """HloModule step

%inner (p.0: f32[64,8], p.1: s32[], p.2: f32[1,8]) -> f32[64,8] {
  %p.0 = f32[64,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[1,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %part = f32[1,8]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,8}
  %sum = f32[1,8]{1,0} add(%part, %p.2)
  ROOT %put = f32[64,8]{1,0} dynamic-update-slice(%p.0, %sum, %p.1, %zero)
}

%outer (q.0: f32[64,8], q.1: s32[], q.2: f32[1,8]) -> f32[64,8] {
  %q.0 = f32[64,8]{1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %q.2 = f32[1,8]{1,0} parameter(2)
  ROOT %f = f32[64,8]{1,0} fusion(%q.0, %q.1, %q.2), kind=kLoop, calls=%inner
}

ENTRY %main (x: f32[64,8], i: s32[], y: f32[1,8]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[1,8]{1,0} parameter(2)
  ROOT %g = f32[64,8]{1,0} fusion(%x, %i, %y), kind=kLoop, calls=%outer
}"""
    row = 8 * 4
    assert hlo.cost(text).memory == 3 * row + 4  # a row and y read, a row written, and the index


def test_collectives_of_a_sharded_scan():
    """Parameters cut over fsdp are gathered layer by layer: once a turn, and never more than one layer's."""
    mesh = make_mesh("fsdp:8")
    with jax.set_mesh(mesh):
        place = lambda s, spec: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))
        w = {"in": place(W["in"], P(None, "fsdp")), "out": place(W["out"], P(None, "fsdp"))}
        rows = NamedSharding(mesh, P("fsdp"))
        keep = lambda x: jax.lax.with_sharding_constraint(x, rows)
        turn = lambda x, w: (keep(jnp.tanh(keep(x @ w["in"])) @ w["out"]), None)
        fn = lambda x, w: jax.lax.scan(turn, x, w)[0]
        text = compiled(fn, place(X, P("fsdp")), w, out_shardings=rows).as_text()
    found = hlo.by_kind(hlo.cost(text).collectives)
    assert found["all-gather"]["count"] == 2 * L
    assert found["all-gather"]["largest"] == D * F * 4 and found["all-gather"]["bytes"] == 2 * L * D * F * 4
    assert hlo.cost(text).flops == WANTED / 8


def test_a_scan_reads_one_layer_a_turn():
    """Memory traffic of a long scan grows with what a turn uses, not with the stack times the turns."""
    w = jax.ShapeDtypeStruct((64, 128, 128), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    fn = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x * w[:8] + w[8:16]), None), x, w)[0]
    stack = np.prod(w.shape) * 4
    assert hlo.cost(compiled(fn, x, w).as_text()).memory < 3 * stack


def test_what_a_collective_under_way_writes_counts_once():
    """An asynchronous gather as a TPU's compiler writes it: begun, gone on with beside a product, waited for. What it
    writes is passed from one to the next in its place."""
    shard, whole = "bf16[64,128]{1,0}", "bf16[256,128]{1,0}"
    gather = "channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}"
    text = f"""HloModule step, num_partitions=4

%begin (s: bf16[64,128]) -> (bf16[64,128], bf16[256,128]) {{
  %s = {shard} parameter(0)
  %g = {whole} all-gather(%s), {gather}
  ROOT %b = ({shard}, {whole}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%beside (s.1: bf16[64,128], w.1: bf16[256,128], x.1: f32[8,16], y.1: f32[16,32]) -> (f32[8,32], bf16[64,128], bf16[256,128]) {{
  %s.1 = {shard} parameter(0)
  %w.1 = {whole} parameter(1)
  %x.1 = f32[8,16]{{1,0}} parameter(2)
  %y.1 = f32[16,32]{{1,0}} parameter(3)
  %g.1 = {whole} all-gather(%s.1), {gather}
  %d = f32[8,32]{{1,0}} dot(%x.1, %y.1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %t = (f32[8,32]{{1,0}}, {shard}, {whole}) tuple(%d, %s.1, %w.1)
}}

%wait (s.2: bf16[64,128], w.2: bf16[256,128]) -> bf16[256,128] {{
  %s.2 = {shard} parameter(0)
  %w.2 = {whole} parameter(1)
  %g.2 = {whole} all-gather(%s.2), {gather}
  ROOT %e = {whole} custom-call(%s.2, %w.2, %g.2), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (p: bf16[64,128], x: f32[8,16], y: f32[16,32]) -> bf16[256,128] {{
  %p = {shard} parameter(0)
  %x = f32[8,16]{{1,0}} parameter(1)
  %y = f32[16,32]{{1,0}} parameter(2)
  %b.0 = ({shard}, {whole}) fusion(%p), kind=kCustom, output_to_operand_aliasing={{{{0}}: (0, {{}})}}, calls=%begin
  %b.1 = {shard} get-tuple-element(%b.0), index=0
  %b.2 = {whole} get-tuple-element(%b.0), index=1
  %f = (f32[8,32]{{1,0}}, {shard}, {whole}) fusion(%b.1, %b.2, %x, %y), kind=kOutput, output_to_operand_aliasing={{{{1}}: (0, {{}}), {{2}}: (1, {{}})}}, calls=%beside
  %f.1 = {shard} get-tuple-element(%f), index=1
  %f.2 = {whole} get-tuple-element(%f), index=2
  ROOT %r = {whole} fusion(%f.1, %f.2), kind=kCustom, output_to_operand_aliasing={{{{}}: (1, {{}})}}, calls=%wait
}}"""
    found = hlo.cost(text)
    shard, product = 64 * 128 * 2, 4 * (8 * 16 + 16 * 32 + 8 * 32)
    # Read and written where it begins, the product beside it; waiting reads the shard again.
    assert found.memory == (shard + 4 * shard) + product + shard
    assert [c.payload for c in found.collectives] == [4 * shard]


@pytest.mark.parametrize("inner", ["bitcast(%q)", "parameter(0)"])
def test_what_a_fusion_within_hands_on_is_read_by_its_user(inner):
    body = "" if inner.startswith("parameter") else "  %q = f32[16,32]{1,0} parameter(0)\n"
    text = f"""HloModule step

%same (q: f32[16,32]) -> f32[16,32] {{
{body}  ROOT %z = f32[16,32]{{1,0}} {inner}
}}

%outer (a: f32[8,16], b: f32[16,32]) -> f32[8,32] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  %b = f32[16,32]{{1,0}} parameter(1)
  %c = f32[16,32]{{1,0}} fusion(%b), kind=kLoop, calls=%same
  ROOT %d = f32[8,32]{{1,0}} dot(%a, %c), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

ENTRY %main (x: f32[8,16], y: f32[16,32]) -> f32[8,32] {{
  %x = f32[8,16]{{1,0}} parameter(0)
  %y = f32[16,32]{{1,0}} parameter(1)
  ROOT %r = f32[8,32]{{1,0}} fusion(%x, %y), kind=kOutput, calls=%outer
}}"""
    assert hlo.cost(text).memory == 4 * (8 * 16 + 16 * 32 + 8 * 32)
