"""What every test runs under: eight virtual CPU devices, quick compilation and, with beartype, checked shapes."""

import importlib.util
import os
import tracemalloc  # noqa: F401  pytest imports it when an object dies; within TFDS's lazy imports that would fail

os.environ["JAX_PLATFORMS"] = "cpu"
for _flag in (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # tests compile much and compute little: a third of the time
):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

if importlib.util.find_spec("beartype"):
    from jaxtyping import install_import_hook

    # Held for the whole session: a module is checked if it is imported while the hook is there.
    _hook = install_import_hook(["flashjax.ops", "flashjax.layers", "flashjax.models"], "beartype.beartype")


def pytest_collection_modifyitems(config, items):
    """The long half of the fault ladder (minutes of kills) runs only when it is asked for: `pytest -m faults`."""
    if "faults" in (config.option.markexpr or ""):
        return
    long = [item for item in items if item.get_closest_marker("faults") and item.get_closest_marker("slow")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
