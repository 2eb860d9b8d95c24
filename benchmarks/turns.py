"""Contenders that take turns: what every side-by-side benchmark shares."""

import statistics
import time
from collections.abc import Callable, Mapping

Step = Callable[[], None]


def take_turns(contenders: Mapping[str, Step], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after `warm_up` calls; drift of the machine slows all of them."""
    for step in contenders.values():
        for _ in range(warm_up):
            step()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    return times


def median_ratio(seconds: list[float], own: list[float]) -> float:
    """The median over rounds of a peer's time by ours: above 1, we are faster."""
    return statistics.median(t / o for t, o in zip(seconds, own, strict=True))
