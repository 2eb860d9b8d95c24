"""Every architecture, by name: `create("swin_tiny_patch4_window7_224", num_classes=10)`."""

from flashjax.models import flash as _flash  # noqa: F401  (each registers its variants)
from flashjax.models import resnet_variants as _resnet  # noqa: F401
from flashjax.models import swin_variants as _swin  # noqa: F401
from flashjax.models import transformer_variants as _transformer  # noqa: F401
from flashjax.models.registry import config, create, names

__all__ = ["config", "create", "names"]
