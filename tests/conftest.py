"""What every test runs under: eight virtual CPU devices, quick compilation and, with beartype, checked shapes."""

import importlib.util
import os
import tempfile
import tracemalloc  # noqa: F401  pytest imports it when an object dies; within TFDS's lazy imports that would fail

os.environ["JAX_PLATFORMS"] = "cpu"
for _flag in (
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and compute little. The last two take a small Transformer's gradient from 2.5 s to 0.6.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",  # XLA ends at once if a version no longer knows a flag
    "--xla_cpu_parallel_codegen_split_count=1",
):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # One program is compiled once for all workers and the processes they start: a quarter of the time again.
    _compiled = tempfile.TemporaryDirectory(prefix="flashjax-compiled-")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": _compiled.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

if importlib.util.find_spec("beartype"):
    from jaxtyping import install_import_hook

    # Held for the whole session: a module is checked if it is imported while the hook is there.
    _checked = [f"flashjax.{room}" for room in ("ops", "layers", "models", "objectives")]
    _hook = install_import_hook(_checked, "beartype.beartype")


def pytest_collection_modifyitems(config, items):
    """Long tests that run only when they are asked for: the long half of the fault ladder (minutes of kills) with
    `pytest -m faults`, plans of pods (minutes of compiling for each) with `pytest -m plan`."""
    asked = config.option.markexpr or ""

    def left_out(item):
        faults = item.get_closest_marker("faults") and item.get_closest_marker("slow")
        return (faults and "faults" not in asked) or (item.get_closest_marker("plan") and "plan" not in asked)

    long = [item for item in items if left_out(item)]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
