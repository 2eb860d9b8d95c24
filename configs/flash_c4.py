"""FLASH as a masked language model on C4 (Hua et al. 2022, "Transformer Quality in Linear Time", arXiv 2202.10447).

    python -m experiments.flash_c4                                                          bytes of the Bible
    python -m experiments.flash_c4 --preset base_512 --data_dir DIR --data.tokenizer TOKENIZER
    python -m experiments.flash_c4 --preset base_4096_quad --data_dir DIR --data.tokenizer TOKENIZER

``base_N`` is FLASH at base size (24 units of 768, ScaleNorm) at context length N, one of 512, 1024, 2048, 4096 and
8192, with 2^18 tokens a step at each; with ``_quad`` FLASH-Quad, ``_transformer`` a Transformer (12 blocks of 768,
sinusoids, GELU), ``_transformer_pp`` the augmented one (RoPE, gated units). 15 % of the tokens are to be guessed, as in
BERT. The tokenizer needs a mask token, which --data.mask_token can name.

What is ours: documents are joined into rows without a break, n is the number of keys a token sees, and the vocabulary
is that of the tokenizer you name. AdamW's figures, warm-up, steps and clipping are those we remember of the paper's
appendix and could not check.

Expected, as published: the perplexity of Transformer++ at each context length, with training up to 4.8 times as fast.
Hardware there: TPU v4. The runs are not repeated here.

``demo`` is a FLASH of 0.9 M parameters on 4 MB of text; ``demo_quad``, ``demo_gau``, ``demo_transformer`` and
``demo_transformer_pp`` compare with it at about equal parameters.
"""

from dataclasses import replace

from configs.flash_lm import FlashRun, paper, tiny, tiny_models
from flashjax import models
from flashjax.data import TextConfig

LENGTHS = (512, 1024, 2048, 4096, 8192)


def _presets() -> dict[str, FlashRun]:
    table = {f"demo{name}": tiny(f"demo{name}", model) for name, model in tiny_models(causal=False).items()}
    for length in LENGTHS:
        data = TextConfig(dataset="c4/en", length=length, documents="joined")
        for end, name in (
            ("", "flash_base_mlm"),
            ("_quad", "flash_quad_base_mlm"),
            ("_transformer", "transformer_base"),
            ("_transformer_pp", "transformer_pp_base"),
        ):
            model = replace(models.config(name), causal=False)
            table[f"base_{length}{end}"] = paper(f"base_{length}{end}", model, data)
    return table


PRESETS = _presets()
