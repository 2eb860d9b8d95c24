"""Memory against recomputation: for each remat policy the peak of a device, the largest batch, and what is computed
again."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from flashjax.analysis.topology import Topology
from flashjax.planning.compiled import OutOfMemoryError, compile_for
from flashjax.planning.tracing import Build, Policy, build
from flashjax.training.program import Program

Plan = dict[str, Any]
"""JSON values alone. Bytes, seconds, FLOPs and cycles without prefixes."""
MOST_COMPILES = 4
"""Of one remat policy in a search."""


def frontier(
    launcher_build: Build, topology: Topology, plan: Plan, policies: list[Policy], cache: bool, search: bool
) -> list[dict[str, Any]]:
    """For each remat policy: peak at this batch, largest batch of a device, FLOPs that are computed again."""
    rows: list[dict[str, Any]] = []
    block = max(policy.block for policy in policies)

    def at_once(policy: Policy) -> int:
        """What it keeps; where blocks are computed again, one at a time is there whole."""
        return policy.kept + (block - policy.block if policy.flops["recomputed"] else 0)

    for policy in policies:
        row = {
            "remat": policy.remat,
            "recomputed_flops": policy.flops["recomputed"],
            "overhead": policy.flops["all"] / max(plan["flops"]["all"] - plan["flops"]["recomputed"], 1) - 1,
            "kept_bytes_per_device": policy.kept * plan["device_batch"] // plan["batch_size"],
        }
        scale = at_once(policy) / max(at_once(policies[0]), 1) if rows else None
        rows.append(row | _estimated(plan, scale))
        if search and plan["memory"]["hbm"]:
            rows[-1] |= _searched(launcher_build, policy.config, topology, plan, rows[-1], cache)
    return rows


def _estimated(plan: Plan, scale: float | None) -> dict[str, Any]:
    """Peak at this batch and largest batch, from the compiler's figure for the plan's own program: what it uses, or
    wants where that is more than there is. `scale` is what another program keeps relative to it, None for itself."""
    memory = plan["memory"]
    peak, hbm, held = memory["peak"], memory["hbm"], memory["held"]
    label = "compiler" if scale is None else "estimate"
    if peak is None:
        return {"peak": None, "largest_batch": None, "label": label}
    state = sum(size for name, size in held.items() if name not in ("batch", "gradients"))
    # Without the compiler's analysis, all that is wanted beyond the state.
    temporaries = memory["compiler"]["temporaries"] if memory["compiler"] else peak - state - held["batch"]
    growing = max(temporaries - held["gradients"], 0) * (1.0 if scale is None else scale) + held["batch"]
    fixed = peak - temporaries + held["gradients"] - held["batch"]
    largest = None if hbm is None or growing <= 0 else max(0, int((hbm - fixed) / growing * plan["device_batch"]))
    return {
        "peak": peak if scale is None else int(fixed + growing),
        "largest_batch": None if largest is None else largest // plan["accumulate"] * plan["accumulate"],
        "label": label,
    }


def _searched(
    launcher_build: Build, config: Any, topology: Topology, plan: Plan, row: dict[str, Any], cache: bool
) -> dict[str, Any]:
    """The largest batch of a device by compiling, or between which it is; nothing new where no program compiles."""
    at, unit = plan["device_batch"], plan["batch_size"] // plan["device_batch"]

    def peak(batch: int) -> int | None:
        data = dataclasses.replace(config.data, batch_size=batch * unit, eval_batch_size=batch * unit)
        made = Program(build(launcher_build, dataclasses.replace(config, data=data)), topology.devices)
        try:
            compiled = compile_for(made.lower_step(), topology, cache)
        except OutOfMemoryError as error:
            return too_large(error.wanted)
        return compiled.memory.peak if compiled.memory else None

    def too_large(wanted: int | None) -> int | None:
        """What is wanted is said in rounded units, which may be no more than there is."""
        return None if wanted is None else max(wanted, limit + 1)

    limit, step = plan["memory"]["hbm"], plan["accumulate"]
    found: dict[int, int | None] = {}
    if row["label"] == "compiler":  # the plan's own program
        found[at] = row["peak"] if plan["memory"]["fits"] else too_large(row["peak"])
    low, high, error = search_largest(peak, found, limit, at, row["largest_batch"], step)
    if not found:
        return {"search_error": error}
    closed = high is not None and high - low <= step
    return {
        "peak": found[at],
        "largest_batch": low if closed else None,
        "bracket": None if closed else [low, high],
        "label": "compiler",
        "compiled_batches": {str(b): p for b, p in sorted(found.items())},
        "search_error": error,
    }


def search_largest(
    peak: Callable[[int], int | None],
    found: dict[int, int | None],
    limit: int,
    at: int,
    guess: int | None = None,
    step: int = 1,
    most: int = MOST_COMPILES,
) -> tuple[int, int | None, str | None]:
    """Largest multiple of `step` whose peak is within `limit`: (one that fits, the least known that does not, the error
    that ended the search). 0 always fits; the answer is found where the two are `step` apart.

    Args:
        peak: bytes at a batch; None where it does not fit and nobody says how much it wants.
        found: peaks that are known; new ones are added until there are `most`.
        at: the first batch, if none is known.
        guess: the next, if one is known.
    """
    while True:
        low = max((b for b, p in found.items() if p is not None and p <= limit), default=0)
        high = min((b for b in found if b > low), default=None)
        if len(found) >= most or (high is not None and high - low <= step):
            return low, high, None
        batch = _next_batch(found, low, high, limit, guess, step) if found else at
        try:
            found[batch] = peak(batch)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            return low, high, f"{batch} examples a device: {error}"


def _next_batch(
    found: Mapping[int, int | None], low: int, high: int | None, limit: int, guess: int | None, step: int
) -> int:
    """Where a line through two peaks meets the limit, those of `low` and `high` if both are known; else twice what
    fits, or the middle."""
    known = [(b, p) for b, p in sorted(found.items()) if p is not None]
    near = [(b, p) for b, p in known if b in (low, high)]
    pair = near if len(near) == 2 else known
    wanted = guess if len(found) == 1 else None
    # Two that do not fit may be so near each other that a line through them is that of their rounding.
    if len(pair) > 1 and (low or 8 * (pair[-1][0] - pair[0][0]) >= pair[-1][0]):
        (b0, p0), (b1, p1) = pair[0], pair[-1]
        wanted = min(b0 + (limit - p0) * (b1 - b0) // (p1 - p0), 8 * b1) if p1 > p0 else None
    if wanted is None:
        wanted = 2 * low if high is None else (low + high) // 2
    batch = max(wanted // step * step, low + step)
    return batch if high is None else min(batch, high - step)
