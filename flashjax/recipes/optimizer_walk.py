"""Adam with L2 and AdamW side by side on two parameters, with everything that either computes on its way.

The loss is (c_1 (x_1 - o_1)^2 + c_2 (x_2 - o_2)^2) / 2: curvatures c, minimum o. Written out in float64 and not by an
optimizer, so that it can be read; the tests hold it against `make_optimizer` and PyTorch.

Kingma and Ba 2014, Algorithm 1; Loshchilov and Hutter 2017, Algorithm 2, with the decay times the learning rate as in
PyTorch and Optax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ALGORITHMS = {"adam_l2": "Adam with L2", "adamw": "AdamW"}
"""What walks, and its words."""


@dataclass(frozen=True)
class Walk:
    """A problem, a start and the constants of both algorithms."""

    curvatures: tuple[float, float] = (10.0, 1.0)
    """c: the first parameter has ten times the gradient of the second at the same distance."""
    minimum: tuple[float, float] = (2.0, 2.0)
    """o, of the loss without any decay."""
    start: tuple[float, float] = (-1.0, -1.0)
    """x at step 1."""
    learning_rate: float = 0.05
    weight_decay: float = 0.5
    """Large, to be seen."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    steps: int = 300
    """Of the picture."""
    shown: int = 3
    """Of them, those in the table."""

    def __post_init__(self) -> None:
        if min(self.curvatures) <= 0:
            raise ValueError(f"curvatures are {self.curvatures}; they must be positive, or there is no minimum")
        if 0 in self.start:
            raise ValueError(f"start is {self.start}: where a parameter is 0 there is nothing to decay")
        if not 0 < self.shown <= self.steps:
            raise ValueError(f"shown is {self.shown}, of {self.steps} steps")


@dataclass(frozen=True)
class Step:
    """One update; arrays are float64 [2], one entry a parameter."""

    number: int
    """t, from 1."""
    x: np.ndarray
    """Before it."""
    gradient: np.ndarray
    """Of the loss."""
    decay_in_gradient: np.ndarray
    """wd x, added to the gradient; 0 in AdamW."""
    m: np.ndarray
    v: np.ndarray
    m_hat: np.ndarray
    """m / (1 - b1^t)."""
    v_hat: np.ndarray
    """v / (1 - b2^t)."""
    adaptive: np.ndarray
    """lr m_hat / (sqrt(v_hat) + eps)."""
    decay: np.ndarray
    """lr wd x, subtracted apart from it; 0 in Adam with L2."""
    shrink: np.ndarray
    """What of the whole update comes of the decay: `decay`, or the decay's part in m_hat divided as the gradient's."""
    after: np.ndarray
    """x - adaptive - decay."""


def walk(problem: Walk, algorithm: str) -> list[Step]:
    """All steps of an algorithm of `ALGORITHMS`."""
    p, wd = problem, problem.weight_decay
    coupled = algorithm == "adam_l2"
    x, m, v, m_decay = np.array(p.start, float), np.zeros(2), np.zeros(2), np.zeros(2)
    steps = []
    for t in range(1, p.steps + 1):
        gradient = np.array(p.curvatures) * (x - np.array(p.minimum))
        inside = wd * x if coupled else np.zeros(2)
        g = gradient + inside
        m = p.b1 * m + (1 - p.b1) * g
        v = p.b2 * v + (1 - p.b2) * g**2
        m_decay = p.b1 * m_decay + (1 - p.b1) * inside  # m is linear in g, so its parts can be told apart
        m_hat, v_hat = m / (1 - p.b1**t), v / (1 - p.b2**t)
        scale = p.learning_rate / (np.sqrt(v_hat) + p.eps)
        adaptive = scale * m_hat
        decay = np.zeros(2) if coupled else p.learning_rate * wd * x
        shrink = scale * m_decay / (1 - p.b1**t) if coupled else decay
        after = x - adaptive - decay
        steps.append(Step(t, x, gradient, inside, m, v, m_hat, v_hat, adaptive, decay, shrink, after))
        x = after
    return steps


HEADS = ["step", "x", "gradient g", "+ wd x", "m", "v", "m^", "v^", "lr m^/(√v^+eps)", "lr wd x"]
HEADS += ["of it decay", "new x"]


def cells(steps: Sequence[Step]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of a table: two rows a step, one for each parameter."""
    rows = []
    for s in steps:
        shown = (s.x, s.gradient, s.decay_in_gradient, s.m, s.v, s.m_hat, s.v_hat, s.adaptive, s.decay, s.shrink)
        for i in range(2):
            rows.append([f"{s.number}, x{'₁₂'[i]}", *(f"{values[i]:.6g}" for values in (*shown, s.after))])
    return list(HEADS), rows


def verdict(problem: Walk, walks: Mapping[str, Sequence[Step]]) -> str:
    """What the last step shows, as a sentence."""
    l2, w = walks["adam_l2"][-1].after, walks["adamw"][-1].after
    rates = walks["adam_l2"][0].shrink / walks["adam_l2"][0].x
    return (
        f"In step 1 Adam with L2 decays x₂ {rates[1] / rates[0]:.1f} times as fast as x₁; "
        f"AdamW decays both by lr wd = {problem.learning_rate * problem.weight_decay:g} of their size. After "
        f"{problem.steps} steps x is ({l2[0]:.3f}, {l2[1]:.3f}) with L2 and ({w[0]:.3f}, {w[1]:.3f}) with AdamW; the "
        f"loss alone is least at ({problem.minimum[0]:g}, {problem.minimum[1]:g})."
    )
