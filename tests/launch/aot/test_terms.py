"""The dearest terms of a program: counted by hand, named by module, pass and line of source."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.aot import hlo, terms
from launch.aot.topology import Chip
from launch.run.mesh import make_mesh

B, D, F = 8, 32, 64
CHIP = Chip(1e6, 1 << 40, 1e12, 1e5, 1e3, ("8",))  # products cost, traffic hardly
X = jax.ShapeDtypeStruct((B, D), jnp.float32)


def turn(x, w):
    with jax.named_scope("mlp/up"):
        wide = jnp.tanh(x @ w["up"])
    with jax.named_scope("mlp/down"):
        return wide @ w["down"], None


def at(text):
    """'file:line' of that line of `turn`."""
    lines, first = inspect.getsourcelines(turn)
    (line,) = (n for n, line in enumerate(lines) if text in line)
    return f"tests/launch/aot/test_terms.py:{first + line}"


def network(layers, body=turn):
    """(gradient of a scan of them, its arguments)."""
    w = {"up": jax.ShapeDtypeStruct((layers, D, F), jnp.float32)}
    w["down"] = jax.ShapeDtypeStruct((layers, F, D), jnp.float32)
    return jax.grad(lambda w, x: jnp.square(jax.lax.scan(body, x, w)[0]).sum(), (0, 1)), w, X


def of(fn, *args, chip=CHIP, count=5):
    with terms.as_named_here():
        text = jax.jit(fn).lower(*args).compile().as_text()
    return terms.dearest(hlo.cost(text), text, chip, count)


@pytest.fixture
def own_cache(tmp_path):
    """A compilation cache of the test's own that keeps everything."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]
    for values in ((str(tmp_path), 0), before):
        compilation_cache.reset_cache()
        for name, value in zip(names, values):
            jax.config.update(name, value)
        if values is not before:
            yield tmp_path


def test_names_are_of_this_code_and_not_of_what_a_cache_holds(own_cache):
    def called(name):
        def product(x, y):
            with jax.named_scope(name):
                return x @ y

        return of(product, *[jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2)[0]["term"]

    assert [called("first"), called("second")] == ["first dot_general", "second dot_general"]
    assert len(list(own_cache.glob("*-cache"))) == 2


@pytest.mark.parametrize("layers", [1, 3])
def test_products_of_a_scan_by_hand(layers):
    """Of each layer one forward and two, of double the FLOPs together, backward."""
    first, second, third = of(*network(layers), count=3)
    product = layers * 2 * B * D * F
    assert {first["term"], second["term"]} == {"mlp/up dot_general", "mlp/down dot_general"}
    for one in (first, second):
        assert one["source"] == at("x @ w" if "up" in one["term"] else "wide @ w")
        assert one["flops"] == 3 * product and one["bound"] == "compute" and not one["sent"]
        assert one["seconds"] == pytest.approx(3 * product / CHIP.flops, rel=1e-3)
        assert one["passes"] == pytest.approx({"forward": product / 1e6, "backward": 2 * product / 1e6}, rel=1e-3)
        assert one["share"] == pytest.approx(0.5, abs=1e-3)
    assert third["bound"] == "memory" and third["seconds"] < 1e-3 * first["seconds"]


def test_what_is_computed_again_is_said():
    (up,) = [one for one in of(*network(2, jax.checkpoint(turn))) if one["term"] == "mlp/up dot_general"]
    product = 2 * 2 * B * D * F / CHIP.flops
    assert up["passes"] == pytest.approx({"forward": product, "backward": 2 * product, "recomputed": product}, rel=1e-3)


def test_a_collective_is_a_term_of_its_own():
    """The kernel of `up`, in eight parts, is gathered: 7/8 of it goes over a link that is slow."""
    mesh = make_mesh("fsdp:8")
    with jax.set_mesh(mesh):
        place = lambda *dims, spec: jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))
        rows = NamedSharding(mesh, P("fsdp"))

        def fn(x, w):
            with jax.named_scope("mlp/up"):
                return jax.lax.with_sharding_constraint(x @ w, rows)

        first, second = of(fn, place(2 * B, D, spec=P("fsdp")), place(D, F, spec=P("fsdp")), count=2)
    scope = "mlp/up " if jax.__version_info__ < (0, 12) else ""  # later partitioners do not say whose it is
    assert first["term"] == f"{scope}all-gather" and first["bound"] == "interconnect"
    assert first["sent"] == 7 / 8 * D * F * 4 and first["seconds"] == pytest.approx(first["sent"] / 1e5, rel=1e-3)
    assert second["term"] == "mlp/up dot_general" and second["flops"] == 2 * 2 * D * F  # of two rows


TPU = """HloModule step

FileNames
1 "/somewhere/site-packages/jax/numpy.py"
2 "/elsewhere/model.py"

FunctionNames
1 "einsum"
2 "attend"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=8 end_column=30}
2 {file_name_id=2 function_name_id=2 line=42 end_line=42 column=15 end_column=28}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%inner (p.0: f32[64,32], p.1: f32[32,16]) -> bf16[64,16] {
  %p.0 = f32[64,32]{1,0} parameter(0)
  %p.1 = f32[32,16]{1,0} parameter(1)
  %y = f32[64,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/transpose(jvp(Decoder.hidden))/decoder/while/body/layers/attention/dot_general" stack_frame_id=2}
  ROOT %z = bf16[64,16]{1,0} convert(%y), metadata={op_name="jit(step)/cond/branch_1_fun/convert" stack_frame_id=1}
}

ENTRY %main (x: f32[64,32], w: f32[32,16]) -> (bf16[64,16], bf16[64,16]) {
  %x = f32[64,32]{1,0} parameter(0), metadata={op_name="x"}
  %w = f32[32,16]{1,0} parameter(1)
  %f = bf16[64,16]{1,0} fusion(%x, %w), kind=kOutput, calls=%inner, metadata={op_name="jit(step)/convert" source_file="/elsewhere/step.py" source_line=3}
  %moved = bf16[64,16]{0,1} copy(%f)
  %r = (bf16[64,16]{0,1}, bf16[64,16]{1,0}) all-reduce(%moved, %f), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %alone = f32[64,32]{0,1} copy(%x)
  ROOT %t = (bf16[64,16], bf16[64,16]) tuple(%r)
}
"""  # noqa: E501


def test_names_as_a_tpus_compiler_writes_them():
    """A fusion is what it multiplies and not its root; what the compiler made stands where its input was made."""
    dearest = terms.dearest(hlo.cost(TPU), TPU, Chip(1e6, 1 << 40, 1e6, 1e6, 1e6, ("8",)))
    found = {(one["term"], one["source"]): one for one in dearest}
    product = found["decoder/layers/attention dot_general", "/elsewhere/model.py:42"]
    assert product["flops"] == 2 * 64 * 32 * 16 and product["passes"].keys() == {"backward"}
    result = 64 * 16 * 2
    assert found["all-reduce of 2 arrays", "/elsewhere/step.py:3"]["sent"] == 2 * result
    assert found["copy", "/elsewhere/step.py:3"]["memory"] == 2 * result
    assert found["copy", ""]["memory"] == 2 * 64 * 32 * 4
    lines = terms.table([product, found["copy", ""]])
    assert lines[1].split() == [
        *("65.54", f"{100 * product['share']:.0f}", "%", "compute"),
        *("decoder/layers/attention", "dot_general", "/elsewhere/model.py:42", "backward", "65.5"),
    ]
    assert "copy" in lines[2] and "the compiler's own" in lines[2]
