"""A plan of a small step on virtual devices, in words and as a page; which models are plain."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from flashjax.analysis import activations, cycles, hlo, topology
from flashjax.analysis.chips import CHIPS
from flashjax.analysis.modules import Place
from flashjax.ops.attention import dot_product_attention
from flashjax.ops.platform import choices, in_words
from flashjax.planning import frontier as frontiers
from flashjax.planning import plan as plans
from flashjax.planning import plan_page, plan_text, tracing
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


class Gated(toy.Linear):
    """Keeps something under a name that has neither parameters nor products."""

    def _losses(self, variables, batch):
        with jax.named_scope("model"), jax.named_scope("gate"):
            gate = jnp.tanh(batch["x"] * variables["params"]["dense"]["bias"][: toy.FEATURES])
        return super()._losses(variables, batch | {"x": gate})


def test_modules_keep_what_the_frontier_says_in_all(tmp_path):
    program = Program(toy.experiment(tmp_path, objective=Gated()))
    traced, shards = program.traced_step.jaxpr, 8
    rows = {row["path"]: row["activation_bytes_per_device"] for row in plans._modules(program, traced, [], shards)}
    assert rows["gate"] >= 4 * toy.BATCH * toy.FEATURES // shards
    assert sum(rows.values()) == pytest.approx(sum(activations.kept(traced).values()) / shards, abs=len(rows))


def test_flops_of_loops_of_unknown_length_are_a_lower_bound(plan):
    assert plan["flops_exact"] and plan_text.time_rows(plan)[0][2] == "exact"
    assert plan_text.time_rows(plan | {"flops_exact": False})[0][2] == "at least"


def test_loops_of_a_program_have_the_turns_of_the_jaxpr():
    def rows(x, n):
        with jax.named_scope("fixed"):
            x, _ = jax.lax.scan(lambda c, i: (jax.lax.fori_loop(0, i, lambda _, c: c @ c, c), None), x, jnp.arange(4))
        with jax.named_scope("given"):
            return jax.lax.fori_loop(0, n, lambda _, c: c @ c, x)

    given = jnp.ones((4, 4)), jnp.int32(2)
    module = hlo.parse(jax.jit(rows).lower(*given).compile().as_text())
    before = module.executions()
    plans._tell_turns(module, jax.make_jaxpr(rows)(*given))
    assert list(module.turns.values()) == [1.5]  # of the four that the scan begins
    grown = {name: (before[name], times) for name, times in module.executions().items() if times != before[name]}
    assert grown and set(grown.values()) == {(4, 6)}


def test_what_a_cpu_does_not_say_is_none_and_not_a_guess(plan):
    assert plan["chip"] is None and plan["memory"]["fits"] is None
    assert plan["time"]["step_seconds"] is None and set(plan["time"]["floors"].values()) == {None}
    assert plan["memory"]["peak"] > 0 and {row["kind"] for row in plan["collectives"]} >= {"all-gather"}


def test_a_plan_is_json_words_and_a_page(plan, tmp_path):
    assert json.loads(json.dumps(plan)) == plan
    words = plan_text.in_words(plan)
    assert re.search(r"\| cpu +(\| +n/a ){6}\|", words)
    assert "toy toy on cpu:8" in words and "mesh: data 2, fsdp 4" in words and "chosen here" not in words
    page = plan_page.write(tmp_path / "plan.html", plan).read_text()
    assert not re.search(r"https?://|<script", page) and "n/a" in page
    chosen = plan | {"choices": {"attention": ["paired"], "implementation": ["blocked", "xla"]}}
    assert "chosen here: attention paired; implementation blocked and xla" in plan_text.lead(chosen)


def test_what_does_not_fit_is_shown_with_what_is_known(plan, tmp_path):
    memory = plan["memory"] | {"compiler": None, "hbm": 100, "peak": 250, "fits": False, "margin": -150}
    time = {
        "floors": {"flops": 0.5, "bytes": None, "collectives": None},
        "cycles": None,
        "step_seconds": None,
        "mfu": None,
    }
    frontier = [plan["frontier"][0] | {"peak": 250, "largest_batch": 3}]
    made = plan | {"memory": memory, "collectives": None, "time": time, "frontier": frontier}
    words = plan_text.in_words(made)
    assert "does not fit: 250 B wanted of 100 B" in words and "500.00 ms |      floor" in words
    assert "compiler; batch: estimate" in words and "no collectives" not in words
    page = plan_page.write(tmp_path / "plan.html", made).read_text()
    assert "not known" in page and '<span class="mark">memory of a device <b>100 B</b>' in page
    assert "n/a" in plan_text.side_by_side([made])


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


COLLECTIVES = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %r = f32[] add(%a, %a)
}

%gathered_product (p: f32[256,1024]) -> f32[1024,1024] {
  %p = f32[256,1024] parameter(0)
  %gather = f32[1024,1024] all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = f32[1024,1024] convolution(%gather, %gather), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[256,1024]) -> f32[1024,1024] {
  %x = f32[256,1024] parameter(0)
  %fused = f32[1024,1024] fusion(%x), kind=kOutput, calls=%gathered_product, backend_config={"estimated_cycles":"9000"}
  ROOT %sum = f32[1024,1024] all-reduce(%fused), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


def made_of(text, chip):
    """(collectives, costs) of a program's text on four devices."""
    module = hlo.parse(text)
    compiled, program = SimpleNamespace(module=module), SimpleNamespace(mesh=SimpleNamespace(shape={"data": 4}))
    costs = cycles.costs(module, bytes_a_cycle=chip.hbm_bandwidth / chip.clock)
    return plans._collectives(compiled, program, chip, costs), costs


def test_a_collective_that_has_cycles_is_not_added_to_them():
    chip = CHIPS["TPU v5 lite"]
    rows, costs = made_of(COLLECTIVES, chip)
    found = {row["kind"]: row for row in rows}
    assert found["all-gather"]["floor_seconds"] > 0 == found["all-gather"]["added_seconds"]
    assert found["all-reduce"]["floor_seconds"] == found["all-reduce"]["added_seconds"] > 0
    machine = topology.Topology("v5e:2x2", "TPU v5 lite", "tpu", range(4), chip)
    flops = {"all": 4 * 10**9, "useful": 4 * 10**9}
    time = plans._time({"flops": flops, "devices": 4, "batch_size": 4, "collectives": rows}, costs, machine)
    assert time["by_kind"]["collective"] == time["cycles"] == time["taken"] == 9000
    assert time["step_seconds"] == pytest.approx(9000 / chip.clock + found["all-reduce"]["floor_seconds"])
    assert time["floors"]["collectives"] == pytest.approx(sum(row["floor_seconds"] for row in rows))


COMBINED = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %r = f32[] add(%a, %a)
}

ENTRY %main (x: f32[1024]) -> (f32[], f32[1024], f32[1024]) {
  %x = f32[1024] parameter(0)
  %loss = f32[] reduce(%x), to_apply=%add, metadata={op_name="jit(step)/jvp(Net)/reduce_sum"}
  %dw = f32[1024] negate(%x), metadata={op_name="jit(step)/transpose(jvp(Net))/a/dot_general"}
  %moved = f32[1024] copy(%dw)
  %db = f32[SIZE] negate(%x), metadata={op_name="jit(step)/optimizer/mul"}
  ROOT %sum = (f32[], f32[1024], f32[SIZE]) all-reduce(%loss, %moved, %db), replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(step)/jvp(Net)/reduce_sum"}
}
"""  # noqa: E501 (a compiler's lines are as long as they are)


@pytest.mark.parametrize(("size", "wanted"), [("8", "backward"), ("1024", "several")])
def test_a_combined_collective_is_of_the_pass_of_most_of_its_bytes(size, wanted):
    (row,), _ = made_of(COMBINED.replace("SIZE", size), CHIPS["TPU v5 lite"])
    assert row["pass"] == wanted


def test_kernels_are_in_the_tables_of_time_and_those_left_out_are_counted():
    chip = CHIPS["TPU v5 lite"]
    kernel = cost(kind="custom call", target="tpu_custom_call", bytes=2**20)
    place = Place("stage_0/attn", "forward")
    costs = [cost(cycles=1000, place=place)] + [
        dataclasses.replace(kernel, scheduled=1000 * i, floor=500, place=place, shape=f"f32[{i}]") for i in range(12)
    ]
    machine = topology.Topology("v5e:1x1", "TPU v5 lite", "tpu", range(1), chip)
    flops = {"all": 10**9, "useful": 10**9, "recomputed": 0}
    made = {"flops": flops, "devices": 1, "batch_size": 4, "collectives": [], "chip": dataclasses.asdict(chip)}
    made |= {"flops_exact": True, "example_tokens": None}
    made["time"] = time = plans._time(made, costs, machine)
    kernels = 500 + 1000 * sum(range(12))
    assert (time["cycles"], time["taken"], time["by_kind"]["custom call"]) == (1000, 1000 + kernels, kernels)
    assert time["by_module_and_kind"] == {"stage_0/attn": {"matmul": 1000, "custom call": kernels}}
    assert time["worst"][0]["cycles"] == 11_000 and time["step_seconds"] == pytest.approx((1000 + kernels) / chip.clock)
    assert sum(call["seconds"] for call in time["custom_calls"]) == pytest.approx(kernels / chip.clock)
    rows = plan_text.custom_rows(made)
    assert [row[5] for row in rows[:2]] == ["11 k", "10 k"] and rows[-1][0] == "and 2 more" and rows[-1][6] == "1.0 µs"
    named = {row[0]: row[1] for row in plan_text.time_rows(made)}
    assert named["others, by schedule or bytes"] == plan_text.told_time(kernels / chip.clock)
    assert named["speed, all devices"] == f"{4 / time['step_seconds']:,.0f} examples/s"
    assert plan_text.speed(made | {"example_tokens": 8}) == f"{32 / time['step_seconds']:,.0f} tokens/s"


GIB, MIB = 2**30, 2**20
LIMIT = 16 * GIB


def grows(fixed, each, pad=1):
    return lambda batch: fixed + each * (-(-batch // pad) * pad)


def searched(peak, at, guess=None, known=True, says=True, step=1):
    """(result, batches that were compiled) where a compiler says how much is wanted, or does not."""
    tried = []

    def compiled(batch):
        tried.append(batch)
        return peak(batch) if says or peak(batch) <= LIMIT else None

    found = {at: compiled(at)} if known else {}
    tried.clear()
    return frontiers.search_largest(compiled, found, LIMIT, at, guess, step), tried


@pytest.mark.parametrize(
    ("at", "guess", "says", "tried", "wanted"),
    [
        (64, 600, True, [600, 614, 615], (614, 615)),  # of 15 GiB in steps of 25 MiB 614 fit
        (64, 300, False, [300, 614, 615], (614, 615)),
        (64, 1200, True, [1200, 614, 615], (614, 615)),
        (64, 1200, False, [1200, 632, 348], (348, 632)),
        (1024, None, True, [512, 614, 615], (614, 615)),
        (1024, None, False, [512, 768, 640], (512, 640)),
        (1024, 700, True, [700, 614, 615], (614, 615)),
        (8192, None, False, [4096, 2048, 1024], (0, 1024)),
    ],
)
def test_the_largest_batch_is_found_or_bracketed(at, guess, says, tried, wanted):
    assert searched(grows(GIB, 25 * MIB), at, guess, says=says) == ((*wanted, None), tried)


def test_a_search_knows_no_peak_at_first_tries_what_divides_and_meets_stairs():
    line = grows(GIB, 25 * MIB)
    assert searched(line, 64, known=False) == ((614, 615, None), [64, 128, 614, 615])
    assert searched(line, 64, 601, step=4) == ((612, 616, None), [600, 612, 616])
    (low, high, _), _ = searched(grows(GIB, 25 * MIB, pad=8), 64, 600)
    assert low <= 608 < high
    assert searched(grows(2 * LIMIT, MIB), 2, says=False)[0] == (0, 1, None)


def test_an_error_ends_a_search_and_leaves_what_was_found():
    def fails(batch):
        if batch > 100:
            raise ValueError("a kernel finds no room")
        return grows(GIB, 25 * MIB)(batch)

    assert searched(fails, 64, 600) == ((64, None, "600 examples a device: a kernel finds no room"), [600])


def frontier_plan(**memory):
    held = {"parameters": 100, "optimizer state": 200, "batch": 16, "gradients": 100}
    return {
        "memory": {"held": held, "hbm": 1000, "compiler": None, "peak": None, "fits": False} | memory,
        "batch_size": 32,
        "device_batch": 8,
        "accumulate": 1,
        "flops": {"all": 100, "recomputed": 0},
    }


def policy(remat, kept, block=0):
    return tracing.Policy(remat, Config(), {"all": 100, "recomputed": 10 * bool(remat)}, kept, block)


def test_what_does_not_fit_has_an_estimate_of_what_would():
    made = frontier_plan(peak=2016)  # 16 of the batch and 1,600 of activations, for 8 examples, beside 400
    own, again = frontiers.frontier(None, None, made, [policy(False, 3200, 2400), policy(True, 400)], False, False)
    assert (own["peak"], own["largest_batch"], own["label"]) == (2016, int(600 / 1616 * 8), "compiler")
    assert again["label"] == "estimate" and again["peak"] < own["peak"]
    assert again["largest_batch"] > own["largest_batch"]
    made["accumulate"] = 2
    assert frontiers.frontier(None, None, made, [policy(False, 3200)], False, False)[0]["largest_batch"] == 2
    unknown = frontiers.frontier(None, None, frontier_plan(), [policy(False, 3200)], False, False)
    assert (unknown[0]["peak"], unknown[0]["largest_batch"]) == (None, None)
    machine = topology.Topology("v5e:2x2", "TPU v5 lite", "tpu", range(4), CHIPS["TPU v5 lite"])
    time = plans._time({"flops": {"all": 4 * 197 * 10**12}, "devices": 4, "collectives": None}, [], machine)
    assert time["floors"] == {"flops": 1.0, "bytes": None, "collectives": None} and time["step_seconds"] is None


def test_only_what_was_compiled_is_the_compilers():
    analysis = {"temporaries": 500, "arguments": 316, "outputs": 300, "aliased": 300, "program": 0}
    made = frontier_plan(peak=816, fits=True, compiler=analysis)
    rows = frontiers.frontier(None, None, made, [policy(False, 3200), policy(True, 3200)], False, False)
    assert [row["label"] for row in rows] == ["compiler", "estimate"] and rows[0]["peak"] == rows[1]["peak"] == 816
    shown = plan_text.frontier_rows({"frontier": rows})
    assert [row[-1] for row in shown] == ["compiler; batch: estimate", "estimate"]
    found = rows[0] | {"largest_batch": None, "bracket": [8, 12], "compiled_batches": {"8": 816, "12": None}}
    assert plan_text.frontier_rows({"frontier": [found]})[0][3::2] == [">= 8, < 12", "compiler"]
    assert plan_text.frontier_rows({"frontier": [found | {"bracket": [0, 4]}]})[0][3] == "< 4"


@dataclasses.dataclass(frozen=True)
class Data:
    batch_size: int = 32
    eval_batch_size: int = 32


@dataclasses.dataclass(frozen=True)
class Config:
    data: Data = Data()


def test_a_search_that_fails_leaves_the_plan(monkeypatch):
    analysis = {"temporaries": 500, "arguments": 316, "outputs": 300, "aliased": 300, "program": 0}
    made = frontier_plan(peak=816, fits=True, compiler=analysis)

    def refuse(*_):
        raise ValueError("no such batch")

    monkeypatch.setattr(frontiers, "build", refuse)
    own, again = frontiers.frontier(None, None, made, [policy(False, 3200), policy(True, 9)], False, True)
    assert own["bracket"] == [8, None] and own["compiled_batches"] == {"8": 816}
    assert again["label"] == "estimate" and again["largest_batch"] > 8
    assert all("no such batch" in row["search_error"] for row in (own, again))


def cost(**changes):
    none = cycles.Cost("x", "fusion", "matmul", None, 1, Place("", "forward"), "", 4, "f32[1]", 8, False)
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
    assert tracing._is_plain(model, chosen) is wanted


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
