"""What can be done to a Transformer that was trained at length L, so that it reads s L tokens: a name each.

`METHODS` change nothing but how attention counts: the weights stay as they are. `TRAINED` are other models, to be
trained at length L; some of them need no change when they are tested beyond it.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashjax.layers.extension import Extension
from flashjax.layers.positions import RopeParameters
from flashjax.models.transformer import TransformerConfig
from flashjax.words import nearest

Change = Callable[[TransformerConfig, int, float], dict[str, Any]]
"""(the model's configuration, L, s) -> fields of the configuration."""
FAMILIES = {
    "as it is": "nothing is changed",
    "frequencies": "other angles: RoPE's frequencies are scaled",
    "distances": "other distances: near ones are kept, far ones squeezed into those of training",
    "keys": "fewer keys: what lies beyond the window is not seen",
    "logits": "logits times the logarithm of the number of keys, alone and with others",
    "trained": "models trained otherwise at the same length",
}


@dataclass(frozen=True)
class Method:
    """A change that needs no training."""

    family: str
    change: Change


def _rope(kind: str, **more: Callable[[int, float], float]) -> Change:
    """Other rotary parameters on the model's base; ``more`` are functions of (L, s)."""

    def change(config: TransformerConfig, L: int, s: float) -> dict[str, Any]:
        if config.rope.rope_type != "default":
            raise ValueError(
                f"the model's angles are scaled already (rope_type {config.rope.rope_type!r}): methods that scale them "
                "again do not apply"
            )
        made = {"rope_type": kind, "original_max_position_embeddings": L}
        made |= {name: value(L, s) for name, value in more.items()}
        return {"rope": dataclasses.replace(config.rope, **made)}

    return change


def _extension(kind: str, log_n: str = "none", **options: Callable[[int, float], float]) -> Change:
    def change(config: TransformerConfig, L: int, s: float) -> dict[str, Any]:
        made = {name: value(L, s) for name, value in options.items()}
        return {"extension": Extension(kind, length=L, log_n=log_n, **made)}  # type: ignore[arg-type]

    return change


def _both(*changes: Change) -> Change:
    return lambda config, L, s: {name: value for change in changes for name, value in change(config, L, s).items()}


def _stretch(L: int, s: float) -> float:
    return float(s)


def _group(L: int, s: float) -> int:
    """The least G with which the farthest distance, w + (s L - w) / G, stays below L, for w = L/2."""
    return max(1, math.ceil((s * L - L // 2) / (L - L // 2 - 1)))


_SINKS: dict[str, Any] = {"window": lambda L, s: L - 4, "sinks": lambda L, s: 4}
_REROPE: dict[str, Any] = {"window": lambda L, s: L // 2}

METHODS: dict[str, Method] = {
    "baseline": Method("as it is", lambda config, L, s: {}),
    "linear": Method("frequencies", _rope("linear", factor=_stretch)),
    "ntk": Method("frequencies", _rope("ntk", factor=_stretch)),
    "ntk_fixed": Method("frequencies", _rope("ntk_fixed", factor=_stretch)),
    "ntk_mixed": Method("frequencies", _rope("ntk_mixed", factor=_stretch)),
    "dynamic": Method("frequencies", _rope("dynamic", factor=lambda L, s: 2.0)),
    "ntk_by_parts": Method("frequencies", _rope("ntk_by_parts", factor=_stretch)),
    "yarn": Method("frequencies", _rope("yarn", factor=_stretch)),
    "llama3": Method(
        "frequencies",
        _rope("llama3", factor=_stretch, low_freq_factor=lambda L, s: 1.0, high_freq_factor=lambda L, s: 4.0),
    ),
    "rerope": Method("distances", _extension("rerope", **_REROPE)),
    # Su, kexue.fm 9728: w is a quarter of L, and the farthest distance half of it.
    "leaky_rerope": Method(
        "distances", _extension("leaky_rerope", window=lambda L, s: L // 4, factor=lambda L, s: float(4 * s - 1))
    ),
    "self_extend": Method("distances", _extension("self_extend", window=lambda L, s: L // 2, group=_group)),
    "dual_chunk": Method("distances", _extension("dual_chunk", chunk=lambda L, s: 3 * L // 4)),
    "window": Method("keys", _extension("window", window=lambda L, s: L)),
    "sinks": Method("keys", _extension("sinks", **_SINKS)),
    "lambda": Method("keys", _extension("lambda", **_SINKS)),
    "log_n": Method("logits", _extension("none", "clipped")),
    "ntk_mixed_log_n": Method("logits", _both(_rope("ntk_mixed", factor=_stretch), _extension("none", "clipped"))),
    "rerope_log_n": Method("logits", _extension("rerope", "clipped", **_REROPE)),
}


def _hwfa(config: TransformerConfig, L: int, s: float) -> dict[str, Any]:
    """Windows w in all blocks but the last, the largest with (w - 1)(depth - 1) + 1 <= 3/4 L (Su, kexue.fm 9603)."""
    window = (3 * L // 4 - 1) // max(config.depth - 1, 1) + 1
    return {
        "mixer_options": f"window={window}",
        "full_last": True,
        "extension": Extension(length=L, log_n="plain"),
        "scan_layers": False,
    }


TRAINED: dict[str, Change] = {
    "rope": lambda config, L, s: {"position": "rope"},
    "alibi": lambda config, L, s: {"position": "alibi", "rope": RopeParameters()},
    "none": lambda config, L, s: {"position": "none", "rope": RopeParameters()},
    "key_norm": lambda config, L, s: {"position": "rope", "qk_norm": "keys"},
    "log_n": lambda config, L, s: {"position": "rope", "extension": Extension(length=L, log_n="plain")},
    "hwfa": lambda config, L, s: {"position": "rope", **_hwfa(config, L, s)},
}
"""Models to train at L; ``rope`` is the usual one, on which methods are tried; ``log_n`` has its factor throughout."""


def parse(name: str) -> tuple[str, str]:
    """(model, method) of "rerope" (the usual model), "key_norm" (another one as it is), or "key_norm/rerope".

    A name that is both is the method; "log_n/baseline" is the model. Raises ValueError with the nearest names.
    """
    model, slash, method = name.partition("/")
    if not slash:
        model, method = ("rope", name) if name in METHODS else (name, "baseline")
    for word, known in ((model, TRAINED), (method, METHODS)):
        if word not in known:
            choices = [*METHODS, *TRAINED] if not slash else list(known)
            near, every = nearest(word, choices), ", ".join(dict.fromkeys(choices))
            raise ValueError(f"unknown method {name!r}; nearest: {near}. All: {every}")
    return model, method


def family(name: str) -> str:
    """Under what heading a method is shown."""
    model, method = parse(name)
    return "trained" if model != "rope" else METHODS[method].family


def trained(config: TransformerConfig, model: str, L: int) -> TransformerConfig:
    """The configuration of a model of `TRAINED`."""
    return dataclasses.replace(config, **TRAINED[model](config, L, 1.0))


def changed(config: TransformerConfig, method: str, L: int, s: float) -> TransformerConfig:
    """A model's configuration with a method of `METHODS` for s L tokens.

    A log n factor that the model was trained with stays. Raises ValueError for a method that needs RoPE and a model
    without it, and for one that scales angles that are scaled already.
    """
    fields = METHODS[method].change(config, L, s)
    if fields and config.position != "rope" and method != "log_n":
        raise ValueError(f"{method} is about rotary positions; the model has position={config.position!r}")
    if "extension" in fields and config.extension.log_n == "plain":
        fields["extension"] = dataclasses.replace(fields["extension"], log_n="plain")
    return dataclasses.replace(config, **fields)
