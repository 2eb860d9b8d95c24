"""The walk on two parameters against PyTorch's Adam and AdamW, in float64."""

import numpy as np
import pytest

from flashjax.recipes.optimizer_walk import Walk, walk

torch = pytest.importorskip("torch", reason="parity needs the extra: pip install 'flashjax[parity]'")


@pytest.mark.parametrize("algorithm, official", [("adam_l2", "Adam"), ("adamw", "AdamW")])
def test_paths_and_moments_are_pytorchs(algorithm, official):
    problem = Walk()
    x = torch.nn.Parameter(torch.tensor(problem.start, dtype=torch.float64))
    optimizer = getattr(torch.optim, official)([x], lr=problem.learning_rate, weight_decay=problem.weight_decay)
    curvatures, minimum = (torch.tensor(v, dtype=torch.float64) for v in (problem.curvatures, problem.minimum))
    for step in walk(problem, algorithm):
        optimizer.zero_grad()
        (curvatures * (x - minimum) ** 2 / 2).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), step.gradient, rtol=1e-11, atol=1e-12)
        optimizer.step()
        state = optimizer.state[x]
        np.testing.assert_allclose(state["exp_avg"].numpy(), step.m, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(state["exp_avg_sq"].numpy(), step.v, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(x.detach().numpy(), step.after, rtol=1e-12, atol=1e-13)
