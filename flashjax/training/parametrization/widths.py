"""muP: a table that makes the best learning rate of a narrow model the best of a wide one.

Yang et al. 2021, "Tensor Programs V" (arXiv 2203.03466), table 8, for Adam. With r the model's width over the base's:

| parameter | which dims grow with the width | deviation | multiplier | learning rate | weight decay |
|---|---|---|---|---|---|
| input: embeddings, patches, biases, norms | outputs | base | 1 | 1 | 1 |
| hidden: kernels inside | both | base / sqrt(r) | 1 | 1 / r | r |
| output: heads | inputs | base | 1 / r | 1 | 1 |
| queries | | | logits by 1 / d: sqrt(d_base / d) | | |

Which dims grow is read off the shapes of the base model; a kernel inside that leads to no more channels than the base
model's, as one to the shared head of a gated attention unit, is an output. Decay times r keeps learning rate x decay
where it was. A tied head is the embedding: its 1 / r goes to the last norm, in whose parameters the logits are linear.
"""

import dataclasses
import re
from collections.abc import Mapping

from flashjax.training.parametrization.presets import FINAL_NORM
from flashjax.training.parametrization.table import Leaf, ParametrizationError, Table, Tensor

_QUERY = re.compile(r"(^|/)attn/query/(kernel|bias)$")
_NORMED_QUERY = re.compile(r"(^|/)attn/(query_norm/|logit_scale$)")


def widen(base: Table, narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor], query: float = 1.0) -> dict[str, Leaf]:
    """The table of the `wide` model from that of the base model, whose tensors are `narrow`.

    Args:
        query: multiplies what makes queries, for logits by 1 / d instead of the model's own division.

    Raises ParametrizationError where the two models have other parameters, where a tied head has no last norm before
    it, and where `query` is not 1 and queries are normalised or made together with keys.
    """
    if narrow.keys() != wide.keys():
        differ = sorted(narrow.keys() ^ wide.keys())
        raise ParametrizationError(
            f"the base model has other parameters, as {differ[0]!r}: it must differ in width only"
        )
    table = {path: _widened(base[path], narrow[path], wide[path]) for path in wide}
    if any(tensor.model.tied for tensor in wide.values()):
        _divide_tied(table, narrow, wide)
    if query != 1:
        _multiply_queries(table, query)
    return table


def _widened(leaf: Leaf, narrow: Tensor, wide: Tensor) -> Leaf:
    if not wide.path.endswith(("kernel", "embedding")):
        return leaf
    rows, columns = (new / old for new, old in zip(wide.matrix, narrow.matrix, strict=True))
    if rows == 1:
        return leaf
    if columns == 1:
        return dataclasses.replace(leaf, multiplier=leaf.multiplier / rows)
    std = None if leaf.std is None else leaf.std / rows**0.5
    return dataclasses.replace(leaf, std=std, learning_rate=leaf.learning_rate / rows, decay=leaf.decay * rows)


def _divide_tied(table: dict[str, Leaf], narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> None:
    norms = [path for path in table if re.search(FINAL_NORM, path)]
    if not norms:
        raise ParametrizationError(
            "the head is the embedding and no last norm stands before it (norm_position post, or no norm): muP has no "
            "place for its 1/r; set tie_embeddings=False"
        )
    embedding = next(path for path in wide if path.endswith("embed/embedding"))
    r = wide[embedding].shape[1] / narrow[embedding].shape[1]
    table |= {path: dataclasses.replace(table[path], multiplier=table[path].multiplier / r) for path in norms}


def _multiply_queries(table: dict[str, Leaf], query: float) -> None:
    if normed := next(filter(_NORMED_QUERY.search, table), None):
        raise ParametrizationError(
            f"logits by 1/d need queries times {query:.4g}, which {normed} would undo: keep the width of a head "
            "(parametrization.keep head_dim), or leave out the norm of queries"
        )
    queries = [path for path in table if _QUERY.search(path)]
    if not queries:
        raise ParametrizationError(
            f"logits by 1/d need queries times {query:.4g}, and this model makes them together with keys: keep the "
            "width of a head (parametrization.keep head_dim)"
        )
    table |= {path: dataclasses.replace(table[path], multiplier=table[path].multiplier * query) for path in queries}
