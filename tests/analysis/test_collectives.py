"""Collectives read from programs that this JAX compiles for 8 devices, and from texts as accelerators write them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flashjax.analysis.collectives import Collective, axes_of, collectives, totals


@pytest.fixture(scope="module")
def mesh():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])


def hlo(fn, *args):
    return jax.jit(fn).lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "operation", "size", "group"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 4 * 5 * 4, 4),
        ("all-reduce", lambda x: jax.lax.psum(x, ("data", "fsdp")), 4 * 5 * 4, 8),
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp"), 4 * 4 * 5 * 4, 4),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "fsdp"), 4 * 5 * 4, 4),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0), 4 * 5 * 4, 4),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 2)]), 4 * 5 * 4, 4),
    ],
)
def test_each_kind_is_read(mesh, kind, operation, size, group):
    mapped = jax.shard_map(operation, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    (found,) = collectives(hlo(mapped, jnp.ones((4, 5))))
    assert (found.kind, found.bytes, found.group_size, found.executions) == (kind, size, group, 1)


def test_a_sharded_step_gathers_its_parameters_in_each_layer(mesh):
    layers, width, batch = 3, 16, 32

    def step(w, x):
        def loss(w):
            return (jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0] ** 2).mean()

        return jax.tree.map(lambda a, b: a - b, w, jax.grad(loss)(w))

    w = jax.device_put(jnp.ones((layers, width, width)), NamedSharding(mesh, P(None, "fsdp")))
    x = jax.device_put(jnp.ones((batch, width)), NamedSharding(mesh, P(("data", "fsdp"))))
    text = jax.jit(step, out_shardings=w.sharding).lower(w, x).compile().as_text()
    found = totals(collectives(text))
    # Once forward and once backward, in a loop that the text holds once.
    assert found["all-gather"].count == 2 * layers
    assert found["all-gather"].bytes == 2 * layers * width * width * 4
    assert found["all-gather"].wire_bytes == pytest.approx(0.75 * found["all-gather"].bytes)
    assert found["all-reduce"].count >= layers


def test_one_device_has_none():
    assert collectives(hlo(lambda x: x @ x, jnp.ones((4, 4)))) == []
    assert totals([]) == {}


ACCELERATOR = """HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %r = f32[] add(f32[] %x, f32[] %y)
}

%wrapped (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %all-to-all.3 = bf16[8,4]{1,0:T(8,128)(2,1)} all-to-all(bf16[8,4] %p), replica_groups=[2,4]<=[8]
}

%body (t: (s32[], f32[64])) -> (s32[], f32[64]) {
  %ags = (f32[16]{0}, f32[64]{0:T(128)}) all-gather-start(%g), replica_groups={{0,1,2,3},{4,5,6,7}}
  %agd = f32[64]{0} all-gather-done((f32[16]{0}, f32[64]{0}) %ags)
  ROOT %tuple = (s32[], f32[64]) tuple(%i, %agd)
}

%cond (t: (s32[], f32[64])) -> pred[] {
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (a: f32[64]) -> f32[64] {
  %w = (s32[], f32[64]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %u = (s32[], f32[64]) while(%w), condition=%cond, body=%body
  %ars = (f32[10]{0}, bf16[6]{0}, /*index=2*/pred[3]{0}) all-reduce-start(%p, %q, %r), replica_groups={}, to_apply=%add
  %ard = (f32[10]{0}, bf16[6]{0}, pred[3]{0}) all-reduce-done(%ars)
  %rss = ((f32[32]), f32[4]) reduce-scatter-start(%p), replica_groups=GROUPS, to_apply=%add
  %cps = (f8e4m3fn[7], f8e4m3fn[7], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,2},{2,0}}
  %all-to-all-start.1 = ((bf16[8,4]{1,0}), bf16[8,4]{1,0}) async-start(%p), calls=%wrapped
  %all-to-all-done.1 = bf16[8,4]{1,0} async-done(%all-to-all-start.1), calls=%wrapped
  ROOT %fused = f32[64] fusion(%x), kind=kLoop, calls=%add, metadata={op_name="jit(f)/all-reduce(x)"}
}
""".replace("GROUPS", "mesh['x'=2,'y'=8], device_ids=([2,8]T(1,0)) {'x','y':(1)4}")


def test_texts_of_accelerators():
    found = {c.name: c for c in collectives(ACCELERATOR)}
    assert found == {
        "all-to-all.3": Collective("all-to-all", "all-to-all.3", 64, 4, 1, (0, 1, 2, 3)),
        "ags": Collective("all-gather", "ags", 256, 4, 13, (0, 1, 2, 3)),
        "ars": Collective("all-reduce", "ars", 40 + 12 + 3, 8, 1, tuple(range(8))),
        "rss": Collective("reduce-scatter", "rss", 16 * 8, 8, 1, tuple(range(8))),
        "cps": Collective("collective-permute", "cps", 7, 3, 1, (0, 1)),
    }
    assert {c.name: c.executions for c in collectives(ACCELERATOR, while_iterations=5)}["ags"] == 17


def test_groups_are_told_by_the_axes_that_they_cross(mesh):
    sizes = dict(mesh.shape)
    for axes in (("data",), ("fsdp",), ("data", "fsdp")):
        mapped = jax.shard_map(lambda x, a=axes: jax.lax.psum(x, a), mesh=mesh, in_specs=P(), out_specs=P())
        (found,) = collectives(hlo(mapped, jnp.ones((4, 5))))
        assert axes_of(found.group, sizes) == axes
    text = ACCELERATOR.replace("{{0,1,2,3},{4,5,6,7}}", "[4,2]<=[2,4]T(1,0)")
    (found,) = (c for c in collectives(text) if c.name == "ags")
    assert found.group == (0, 4) and axes_of(found.group, {"x": 2, "y": 4}) == ("x",)
    text = ACCELERATOR.replace("mesh['x'=2,'y'=8], device_ids=([2,8]T(1,0)) {'x','y':(1)4}", "mesh['x'=2,'y'=4] {'y'}")
    (found,) = (c for c in collectives(text) if c.name == "rss")
    assert found.group == (0, 1, 2, 3)


def test_bytes_on_the_wire_are_those_of_a_ring():
    assert Collective("all-reduce", "x", 100, 4, 1).wire_bytes == 150
    assert Collective("reduce-scatter", "x", 100, 4, 1).wire_bytes == 75
    assert Collective("collective-permute", "x", 100, 3, 1).wire_bytes == 100
    assert totals([Collective("all-reduce", "x", 100, 4, 3)])["all-reduce"].wire_bytes == 450


def test_another_text_is_an_error():
    with pytest.raises(ValueError, match=r"compile\(\)\.as_text"):
        collectives(jax.jit(jnp.sin).lower(1.0).as_text())
