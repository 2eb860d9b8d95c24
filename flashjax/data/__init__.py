"""Sources, augmentation and the Grain pipeline: `classification(config, data_dir, seed)` opens an image set,
`language(config, data_dir, seed)` text."""

from flashjax.data.config import AugmentConfig, DataConfig, TextConfig
from flashjax.data.pipeline import BadImageError, DatasetInfo, Pipeline, classification
from flashjax.data.text import LanguageInfo, language
from flashjax.data.tokenizers import Tokenizer, open_tokenizer

__all__ = [
    "AugmentConfig",
    "BadImageError",
    "DataConfig",
    "DatasetInfo",
    "LanguageInfo",
    "Pipeline",
    "TextConfig",
    "Tokenizer",
    "classification",
    "language",
    "open_tokenizer",
]
