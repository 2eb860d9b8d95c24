"""Image classification: soft-target cross entropy to train, top-1 and top-5, each example once, to evaluate.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from flashjax.objectives import auxiliary

Batch = Mapping[str, Array]
Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Classification:
    """The objective of a model that maps images to logits; its methods are pure and meant to be jitted.

    A step of the trainer calls `prepare` once on the whole batch and `loss` once per micro-batch, since what
    preparing draws (erased pixels) and mixes (an example with its partner) is about the whole batch.
    """

    model: nn.Module
    """Called as `model(images, train=...)`; returns logits [B, K]."""
    num_classes: int
    """K; the model's logits must have as many."""
    prepare_train: Callable[[Batch, PRNGKeyArray], dict[str, Array]]
    """(train batch, key) -> image float32 [B, H, W, C] and target float32 [B, K] whose rows sum to 1."""
    prepare_eval: Callable[[Batch], dict[str, Array]]
    """Evaluation batch -> image float32 [B, H, W, C], label int32 [B], mask float32 [B]."""

    def init(self, rngs: Mapping[str, PRNGKeyArray], batch: Batch) -> dict[str, Any]:
        """All variables of the model for images of the shape of `batch["image"]`, raw or prepared.

        Losses sown on the way are left out. Under jit the forward pass is dead code, whatever the batch.
        """
        images = jnp.zeros(batch["image"].shape, jnp.float32)
        return auxiliary.init(self.model, rngs, images)

    def prepare(self, batch: Batch, key: PRNGKeyArray) -> dict[str, Array]:
        """The train pipeline's batch, normalised, erased and mixed; every leaf keeps its leading dim B."""
        return self.prepare_train(batch, key)

    def loss(
        self, variables: Variables, batch: Batch, rngs: Mapping[str, PRNGKeyArray], train: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], dict[str, Any]]:
        """Mean cross entropy, in float32, of a prepared (micro-)batch, plus the sown auxiliary losses.

        Returns the loss, the metrics (loss, accuracy against the largest target and, where the model sows
        any, auxiliary_loss) and the collections that the model changed, as batch_stats; none if not `train`.

        Raises ValueError where the model has not `num_classes` logits.
        """
        logits, sown, changed = auxiliary.apply(self.model, variables, batch["image"], train=train, rngs=rngs)
        logits = self._checked(logits)
        loss = optax.softmax_cross_entropy(logits, batch["target"].astype(jnp.float32)).mean()
        hits = jnp.argmax(logits, -1) == jnp.argmax(batch["target"], -1)
        metrics = {"accuracy": hits.mean(dtype=jnp.float32)}
        if sown is not None:
            metrics["auxiliary_loss"] = sown
            loss = loss + sown
        return loss, {"loss": loss, **metrics}, changed

    def evaluate(self, variables: Variables, batch: Batch) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """(sum over the examples, number of them) of loss, top1 and top5 for an evaluation batch.

        Rows with mask 0 count nowhere, whatever the model makes of them. With fewer than five classes top5
        looks at all. Ties go to the lower class, so constant logits score no better than one class.
        """
        prepared = self.prepare_eval(batch)
        logits = self._logits(variables, prepared["image"])
        valid, label = prepared["mask"] > 0, prepared["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, label, 0))
        _, ranked = jax.lax.top_k(logits, min(5, self.num_classes))
        hits = ranked == label[:, None]
        rows = {"loss": losses, "top1": hits[:, 0], "top5": hits.any(-1)}
        weight = valid.sum(dtype=jnp.float32)
        return {name: (jnp.sum(jnp.where(valid, value, 0), dtype=jnp.float32), weight) for name, value in rows.items()}

    def predict(self, variables: Variables, batch: Batch) -> Float[Array, "B K"]:
        """Probabilities, float32, for an evaluation batch."""
        return jax.nn.softmax(self._logits(variables, self.prepare_eval(batch)["image"]))

    def _logits(self, variables: Variables, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return self._checked(self.model.apply(variables, images, train=False))

    def _checked(self, logits: Any) -> Float[Array, "B K"]:
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the model has {logits.shape[-1]} logits and the data {self.num_classes} classes; "
                f"create the model with num_classes={self.num_classes}"
            )
        return logits.astype(jnp.float32)
