"""An objective under a parametrization: its parameters drawn from a table and multiplied before the model sees them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import jax

from flashjax.training.optimizers import Scale
from flashjax.training.parametrization import draw
from flashjax.training.parametrization.changes import change
from flashjax.training.parametrization.config import Keep, ParametrizationConfig
from flashjax.training.parametrization.presets import PRESETS
from flashjax.training.parametrization.table import Leaf, ParametrizationError, Tensor, resolve, tensors
from flashjax.training.parametrization.widths import widen

if TYPE_CHECKING:
    from flashjax.training.experiment import Batch, Metrics, Objective, Rngs, Variables

PyTree = Any


class ModelConfig(Protocol):
    """What presets that look beyond shapes ask of a model's configuration."""

    @property
    def head_width(self) -> int | None:
        """Channels of an attention head, where all have as many."""

    @property
    def logit_power(self) -> float | None:
        """p of q.k / head_width^p; None: no such logits."""

    def at_width(self, width: int, keep: Keep = "head_dim") -> "ModelConfig":
        """The same model, narrower or wider, with heads as wide or with as many heads."""
        ...


@dataclass(frozen=True)
class Parametrized:
    """An `Objective` whose model sees each parameter times its multiplier; with the table of "model" the objective
    itself."""

    objective: "Objective"
    table: Mapping[str, Leaf]
    """By path of a parameter."""
    parameters: Mapping[str, Tensor]
    """What the table was made for."""

    def init(self, rngs: "Rngs", batch: "Batch") -> "Variables":
        """All variables; parameters from the table."""
        variables = self.objective.init(rngs, batch)
        key = jax.random.fold_in(rngs["params"], _STREAM)
        return {**variables, "params": draw.draw(self.table, self.parameters, variables["params"], key)}

    def prepare(self, batch: "Batch", key: jax.Array) -> "Batch":
        return self.objective.prepare(batch, key)

    def loss(self, variables: "Variables", batch: "Batch", rngs: "Rngs") -> tuple[jax.Array, "Metrics", "Variables"]:
        return self.objective.loss(self.of_model(variables), batch, rngs)

    def evaluate(self, variables: "Variables", batch: "Batch") -> dict[str, tuple[jax.Array, jax.Array]]:
        return self.objective.evaluate(self.of_model(variables), batch)

    def of_model(self, variables: "Variables") -> "Variables":
        """Variables as the model itself takes them: multiplied. What is exported, shown and asked for predictions."""
        return {**variables, "params": draw.multiply(self.multipliers, variables["params"])}

    def from_model(self, params: PyTree) -> PyTree:
        """Host arrays that the model took, as they are stored: divided; shapes stay shapes."""
        return draw.divide(self.multipliers, params)

    @property
    def multipliers(self) -> dict[str, float]:
        """By path, those that are not 1."""
        return {path: leaf.multiplier for path, leaf in self.table.items() if leaf.multiplier != 1}

    @property
    def scales(self) -> dict[str, Scale]:
        """What `make_optimizer` takes."""
        return {path: Scale(leaf.learning_rate, leaf.decay) for path, leaf in self.table.items()}


_STREAM = 0x1417
"""Keeps the table's draws apart from the model's own, which begin with the same key."""


def parametrize(
    objective: "Objective",
    config: ParametrizationConfig,
    params: PyTree,
    shapes: Callable[["Objective"], PyTree],
) -> Parametrized:
    """`objective`, whose parameters are `params` (abstract will do), under `config`.

    Args:
        shapes: gives the parameters, abstract ones, of the base model's objective, where the preset has one.

    Raises ParametrizationError or ValueError where the preset and the model do not fit.
    """
    model = _model_config(objective)
    parameters = tensors(params, getattr(model, "head_width", None))
    if config.preset == "mup":
        table = _mup(objective, config, parameters, shapes)
    else:
        if config.preset == "t5":
            _check_t5(model, parameters)
        if config.preset in _BY_DEPTH:
            _check_branches(config.preset, model, parameters)
        table = resolve(PRESETS[config.preset], parameters)
    return Parametrized(objective, change(table, config.rules), parameters)


def _mup(
    objective: "Objective",
    config: ParametrizationConfig,
    wide: Mapping[str, Tensor],
    shapes: Callable[["Objective"], PyTree],
) -> dict[str, Leaf]:
    model = _model_config(objective)
    if not hasattr(model, "at_width"):
        raise ParametrizationError(f"mup needs a model that can be narrowed: {type(model).__name__} has no at_width")
    model = cast(ModelConfig, model)
    base = model.at_width(config.base_width, config.keep)
    whole: Any = objective
    narrowed = dataclasses.replace(whole, model=whole.model.clone(config=base))
    narrow = tensors(shapes(narrowed), base.head_width)
    query = 1.0
    if config.keep == "heads":
        if model.logit_power is None or not model.head_width or not base.head_width:
            raise ParametrizationError("logits by 1/d are for softmax attention: set parametrization.keep head_dim")
        query = (model.head_width / base.head_width) ** (model.logit_power - 1)
    return widen(resolve(PRESETS["mup"], narrow), narrow, wide, query)


def _check_t5(model: Any, parameters: Mapping[str, Tensor]) -> None:
    if getattr(model, "logit_power", None) != 0:
        raise ParametrizationError(
            "preset t5 puts the 1/sqrt(head_dim) of attention logits into the queries: set model.attention_scale=none "
            "(a model without that field cannot take it)"
        )
    facts = next(iter(parameters.values())).model
    if facts.tied and not any("final_norm/" in path for path in parameters):
        raise ParametrizationError(
            "preset t5 divides the logits of a tied head by sqrt(width) in the last norm, and there is none: set "
            "tie_embeddings=False"
        )


_BY_DEPTH = ("gpt2", "deepnorm", "fixup", "t_fixup", "t_fixup_encoder")
"""Presets whose deviations follow from the number of residual branches."""


def _check_branches(preset: str, model: Any, parameters: Mapping[str, Tensor]) -> None:
    facts = next(iter(parameters.values())).model
    if not facts.branches or (facts.convs and preset != "fixup"):
        raise ParametrizationError(
            f"preset {preset} scales what residual branches of Transformers end with, and {type(model).__name__} has "
            "none of these: choose another preset"
        )
    if facts.convs and getattr(model, "norm", None) != "none":
        raise ParametrizationError(
            "preset fixup is for residual networks without normalisation, which undoes its scales: take a model of "
            "norm 'none' (fixup_resnet20_cifar_basic and its like)"
        )


def _model_config(objective: Any) -> Any:
    return getattr(getattr(objective, "model", None), "config", None)
