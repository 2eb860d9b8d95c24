"""How parameters begin, and by which constants they act and learn: presets by path, muP among them.

`parametrize(objective, config, shapes)` wraps an objective; `Program` does it for every launcher.
"""

from flashjax.training.parametrization.config import ParametrizationConfig
from flashjax.training.parametrization.draw import multiply
from flashjax.training.parametrization.objective import ModelConfig, Parametrized, parametrize
from flashjax.training.parametrization.presets import PRESETS
from flashjax.training.parametrization.table import Leaf, ParametrizationError, Rule, Tensor, resolve, tensors

__all__ = [
    "PRESETS",
    "Leaf",
    "ModelConfig",
    "ParametrizationConfig",
    "ParametrizationError",
    "Parametrized",
    "Rule",
    "Tensor",
    "multiply",
    "parametrize",
    "resolve",
    "tensors",
]
