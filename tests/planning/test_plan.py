"""A plan of a small step on virtual devices, in words and as a page; which models are plain."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest

from flashjax.ops.attention import dot_product_attention
from flashjax.ops.platform import choices, in_words
from flashjax.planning import plan as plans
from flashjax.planning import plan_page, topology
from flashjax.planning.chips import CHIPS
from flashjax.training.program import Program
from tests.training import toy

DENSE = toy.FEATURES * toy.CLASSES


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    where = tmp_path_factory.mktemp("plan")
    built = toy.experiment(where)
    return plans.make(lambda _: built, built.config, topology.open_topology("cpu:8"), cache=False)


def test_state_and_flops_are_exact(plan):
    rows = {row["path"]: row for row in plan["modules"]}
    assert rows["dense"]["parameters"] == DENSE + toy.CLASSES
    assert plan["memory"]["held"]["gradients"] == plan["memory"]["held"]["parameters"] < 4 * DENSE
    # Forward, and backward to the kernel alone: nothing is before the layer.
    assert plan["flops"]["all"] == plan["flops"]["useful"] == 2 * 2 * toy.BATCH * DENSE
    assert plan["choices"] == {}


def test_what_a_cpu_does_not_say_is_none_and_not_a_guess(plan):
    assert plan["chip"] is None and plan["memory"]["fits"] is None
    assert plan["time"]["step_seconds"] is None and set(plan["time"]["floors"].values()) == {None}
    assert plan["memory"]["peak"] > 0 and {row["kind"] for row in plan["collectives"]} >= {"all-gather"}


def test_a_plan_is_json_words_and_a_page(plan, tmp_path):
    assert json.loads(json.dumps(plan)) == plan
    words = plan_page.text(plan)
    assert "toy toy on cpu:8" in words and "mesh: data 2, fsdp 4" in words and "chosen here" not in words
    page = plan_page.write(tmp_path / "plan.html", plan).read_text()
    assert not re.search(r"https?://|<script", page) and "n/a" in page
    chosen = plan | {"choices": {"attention": ["paired"], "implementation": ["blocked", "xla"]}}
    assert "chosen here: attention paired; implementation blocked and xla" in plan_page.lead(chosen)


def test_a_gpu_has_floors_and_no_cycles():
    """Of a text as the CUDA compiler writes it, floors are by peak, links, and what the cache cannot hold."""
    chip = CHIPS["NVIDIA H100 80GB HBM3"]
    machine = topology.Topology("gpu:h100x8", "NVIDIA H100 80GB HBM3", "gpu", range(8), chip)
    costs = [cost(traffic=3350 * 10**6, executions=2)]
    made = {"flops": {"all": 8 * 9894 * 10**9}, "devices": 8, "collectives": [{"floor_seconds": 0.25}]}
    found = plans._time(made, costs, machine)
    assert found["floors"] == pytest.approx({"flops": 0.01, "bytes": 0.002, "collectives": 0.25})
    assert (found["cycles"], found["step_seconds"], found["mfu"]) == (None, None, None)


def test_a_kernel_takes_its_time_where_nothing_of_it_is_in_main_memory_too():
    chip = CHIPS["TPU v5 lite"]
    kernel = cost(kind="custom call", target="tpu_custom_call", bytes=2**20, scheduled=3_000_000, executions=2)
    found = plans._custom_calls([dataclasses.replace(kernel, traffic=0), cost(kind="custom call")], chip)
    assert [(call["scheduled_cycles"], call["floor_seconds"]) for call in found] == [(6_000_000, 0)]
    assert found[0]["seconds"] == pytest.approx(6e6 / chip.clock)


def cost(**changes):
    from flashjax.planning.cycles import Cost
    from flashjax.planning.modules import Place

    none = Cost("x", "fusion", "matmul", None, 1, Place("", "forward"), "", 4, "f32[1]", 8, False)
    return dataclasses.replace(none, **changes)


@dataclasses.dataclass(frozen=True)
class Model:
    attention: str = "auto"
    remat: bool = False

    def plain(self):
        return Model("windows", False)


@pytest.mark.parametrize(
    ("model", "chosen", "wanted"),
    [
        (Model("windows"), {}, True),
        (Model(), {"attention": {"windows"}}, True),
        (Model(), {"attention": {"paired"}}, False),
        (Model(), {}, False),
        (Model("windows", remat=True), {}, False),
    ],
)
def test_a_plain_model_is_not_traced_again(model, chosen, wanted):
    assert plans._is_plain(model, chosen) is wanted


def trace(tokens: int) -> None:
    """Anew: of what JAX has traced before nothing is heard."""
    x = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)
    jax.eval_shape(lambda q: dot_product_attention(q, q, q), x)


def test_what_auto_is_is_heard_of():
    with choices() as heard:
        trace(16)
    assert heard == {"implementation": {"xla"}}
    with choices() as heard:
        trace(4096)
        trace(16)
    assert in_words(heard) == "implementation blocked and xla"
    trace(16)  # nobody listens


def test_attention_is_chosen_for_the_devices_that_are_planned_for():
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)
    with choices() as heard, jax.sharding.use_abstract_mesh(mesh):
        trace(512)
    assert heard == {"implementation": {"xla"}}  # on this CPU it would be blocked


def test_a_step_is_traced_once(tmp_path):
    program = Program(toy.experiment(tmp_path))
    assert program.traced_step is program.traced_step and program.choices == {}
    assert program.flops() == 2 * 2 * toy.BATCH * DENSE
