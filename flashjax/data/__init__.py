"""Sources, augmentation and the Grain pipeline: `classification(config, data_dir, seed)` opens an image set."""

from flashjax.data.config import AugmentConfig, DataConfig
from flashjax.data.pipeline import BadImageError, DatasetInfo, Pipeline, classification

__all__ = ["AugmentConfig", "BadImageError", "DataConfig", "DatasetInfo", "Pipeline", "classification"]
