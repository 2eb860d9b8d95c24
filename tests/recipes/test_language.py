"""The recipe of language models on a few lines of text: train, evaluate, continue, guess, start from another run."""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import interop
from flashjax.data import TextConfig, open_tokenizer
from flashjax.layers.extension import Extension
from flashjax.layers.positions import RopeParameters
from flashjax.models.decode import Sampling
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.objectives.language import LanguageModelling
from flashjax.recipes import language
from flashjax.training import MeshConfig, OptimizerConfig, TrainConfig
from flashjax.training.mesh import make_mesh
from flashjax.training.sharding import shardings_for
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.toy"
MODEL = TransformerConfig(
    vocab_size=260, width=16, depth=2, heads=2, position="rope", norm="rmsnorm", max_length=32, scan_layers=True
)


@dataclass(frozen=True, kw_only=True)
class Toy(language.LanguageRun):
    """A run."""

    model: TransformerConfig = field(default_factory=lambda: MODEL)
    """Architecture."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n\n".join(f"In line {i} the fox jumps over {i % 7} lazy dogs." for i in range(300)))
    return path


def toy(text, workdir, **fields) -> Toy:
    return Toy(
        workdir=str(workdir),
        data_dir=str(text),
        steps=6,
        max_new_tokens=8,
        sampling=Sampling(temperature=0.0),
        mesh=MeshConfig(data=2, sequence=2, tensor=2),
        data=TextConfig(
            dataset="text", document_separator="blank", length=32, batch_size=8, eval_batch_size=8, eval_batches=1
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(log_every=2, eval_every=3, progress=False),
        **fields,
    )


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    config = toy(text, tmp_path_factory.mktemp("run"), prompt="In line 3")
    language.run(config, Transformer, PROGRAM, Watchdog(), further={"the paper's run": "python -m big"})
    return config


@pytest.mark.slow
def test_a_run_ends_with_a_summary_and_text(trained, capfd):
    report = (language.Path(trained.workdir) / "report.html").read_text()
    assert "held-out perplexity" in report and "tokens/s" in report and "In line 3" in report
    language.run(dataclasses.replace(trained, mode="eval"), Transformer, PROGRAM, Watchdog())
    figures = dict(line.split() for line in capfd.readouterr().out.splitlines() if len(line.split()) == 2)
    assert {"loss", "accuracy", "bits_per_byte", "perplexity"} <= figures.keys()
    np.testing.assert_allclose(float(figures["perplexity"]), np.exp(float(figures["loss"])), rtol=1e-4)
    # A byte is a token, but for those that end a line: bits a byte are at least bits a token.
    assert float(figures["bits_per_byte"]) >= float(figures["loss"]) / np.log(2)


@pytest.mark.slow
def test_predict_continues_the_prompt(trained, capfd):
    language.run(dataclasses.replace(trained, mode="predict"), Transformer, PROGRAM, Watchdog())
    out = capfd.readouterr().out
    assert out.startswith("In line 3") and len(out) > len("In line 3\n")
    with pytest.raises(ValueError, match=r"no finished run in .*nowhere: train first"):
        language.predict(dataclasses.replace(trained, workdir="nowhere"), Transformer, PROGRAM)


@pytest.mark.slow
def test_text_that_cannot_be_made_is_a_sentence_of_the_report(text, tmp_path, capfd):
    model = dataclasses.replace(MODEL, position="learned", scan_layers=False, depth=1)
    config = dataclasses.replace(toy(text, tmp_path, model=model, prompt="In line 3 " * 5), steps=2)
    language.run(config, Transformer, PROGRAM, Watchdog())
    sentence = "none, ValueError: a prompt of 51 tokens and 1 more, but the model has 32 positions"
    assert sentence in capfd.readouterr().out
    assert sentence in (language.Path(config.workdir) / "report.html").read_text()


@pytest.mark.parametrize("mixer", ["softmax", "cosformer"])
def test_a_sample_is_no_longer_than_the_model_has_positions(text, tmp_path, mixer):
    position = "learned" if mixer == "softmax" else "none"
    model = dataclasses.replace(MODEL, position=position, mixer=mixer, depth=1, max_length=10)
    built = language.experiment(
        dataclasses.replace(toy(text, tmp_path, model=model), max_new_tokens=200), Transformer, PROGRAM
    )
    assert isinstance(built.objective, LanguageModelling)
    net = built.objective.model
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    given, _ = language.sample_text(built, variables)
    assert given == "In l"  # half of the positions: a token that begins texts, and four bytes
    tokenizer = language.data.open_tokenizer(built.config.data.tokenizer, None)
    for length, room in ((5, 6), (10, 1)):  # the last token drawn is not read again
        assert len(language.continue_text(net, variables, [65] * length, built.config, tokenizer)) == room
    with pytest.raises(ValueError, match="a prompt of 11 tokens and 1 more, but the model has 10 positions"):
        language.continue_text(net, variables, [65] * 11, built.config, tokenizer)


@pytest.mark.slow
def test_a_run_can_start_from_another_one(trained, text, tmp_path):
    other = toy(
        text, tmp_path, init=trained.workdir, model=dataclasses.replace(MODEL, scan_layers=False, dropout_rate=0.1)
    )
    built = language.experiment(other, Transformer, PROGRAM)
    model = built.config.model
    assert not model.scan_layers and model.dropout_rate == 0.1 and model.position == "rope"
    start = built.initial({"params": None})["params"]
    source = language.finished_run(trained.workdir).variables["params"]["layers"]
    np.testing.assert_array_equal(start["layer_1"]["mlp"]["up"]["kernel"], source["mlp"]["up"]["kernel"][1])
    again = language.layers_as(start, scanned=True)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(again))  # on the host, and not whole on a device
    jax.tree.map(np.testing.assert_array_equal, again["layers"], source)


@pytest.mark.slow
def test_an_encoder_guesses_what_is_hidden(text, tmp_path, capfd):
    config = toy(text, tmp_path, model=dataclasses.replace(MODEL, causal=False))
    language.run(config, Transformer, PROGRAM, Watchdog())
    assert "[" in (language.Path(config.workdir) / "report.html").read_text()
    capfd.readouterr()
    language.run(dataclasses.replace(config, mode="predict", prompt="In l<mask>ne"), Transformer, PROGRAM, Watchdog())
    given, filled = capfd.readouterr().out.splitlines()
    assert given == "In l▁ne" and filled.startswith("In l[") and filled.endswith("]ne")
    with pytest.raises(ValueError, match="give a text that holds '<mask>'"):
        language.run(dataclasses.replace(config, mode="predict", prompt=""), Transformer, PROGRAM, Watchdog())


def test_the_experiment_fits_its_text(text, tmp_path):
    built = language.experiment(
        toy(text, tmp_path, model=dataclasses.replace(MODEL, vocab_size=7)), Transformer, PROGRAM
    )
    goal = built.objective
    assert isinstance(goal, LanguageModelling) and goal.vocab_size == built.config.model.vocab_size == 260
    assert goal.token_bytes is not None and goal.token_bytes[:256].sum() == 256 and goal.token_bytes[256:].sum() == 0
    assert built.train_data.spec["tokens"].shape == (8, 33) and built.steps == 6
    encoder = language.experiment(
        toy(text, tmp_path, model=dataclasses.replace(MODEL, causal=False)), Transformer, PROGRAM
    )
    assert encoder.train_data.spec["tokens"].shape == (8, 32)
    masking = encoder.objective.masking
    assert masking.mask_token == 259 and masking.never == (256, 257, 258)


def test_a_model_without_a_tokenizer_is_read_as_bytes_only_where_it_has_as_many(text, tmp_path):
    for size, ends in ((300, ()), (260, (7, 9))):
        model = dataclasses.replace(MODEL, vocab_size=size, activation="swiglu", qkv_bias=False, out_bias=False)
        model = dataclasses.replace(model, mlp_bias=False, scan_layers=False)
        variables = jax.tree.map(np.asarray, Transformer(model).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
        interop.save_pretrained(tmp_path / str(size), model, variables, eos_token_id=list(ends))
    with pytest.raises(ValueError, match=r"300 brings no tokenizer: name one with --data\.tokenizer"):
        language.initial(toy(text, tmp_path, init=str(tmp_path / "300")), Transformer)
    found = language.initial(toy(text, tmp_path, init=str(tmp_path / "260")), Transformer)
    assert found.config.data.tokenizer == "bytes" and found.eos == (7, 9)
    assert language.ends(found, open_tokenizer("bytes")) == (7, 9, 258)
    named = toy(text, tmp_path, init=str(tmp_path / "300"))
    named = dataclasses.replace(named, data=dataclasses.replace(named.data, tokenizer="bytes:eos"))
    assert language.initial(named, Transformer).config.data.tokenizer == "bytes:eos"


@pytest.mark.parametrize("mixer", ["linformer", "nystromformer"])
def test_rows_with_more_documents_than_a_mixer_has_places_for(text, tmp_path, mixer):
    model = dataclasses.replace(MODEL, mixer=mixer, mixer_options="documents=2", causal=False, position="none")
    config = toy(text, tmp_path, model=model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, length=128))
    with pytest.raises(ValueError, match=rf"holds \d documents, and {mixer} has places for 2: .*--data.documents"):
        language.experiment(config, Transformer, PROGRAM)
    joined = dataclasses.replace(config, data=dataclasses.replace(config.data, documents="joined"))
    roomy = dataclasses.replace(config, model=dataclasses.replace(model, mixer_options="documents=9"))
    for fitting in (joined, roomy):
        language.experiment(fitting, Transformer, PROGRAM)


def test_settings_come_back_from_json():
    model = dataclasses.replace(
        MODEL,
        rope=RopeParameters(rope_type="linear", factor=2.0),
        extension=Extension(kind="window", window=5),
    )
    assert language.from_plain(TransformerConfig, dataclasses.asdict(model), "here") == model
    with pytest.raises(ValueError, match="here holds another kind of model: TransformerConfig has no patch_size"):
        language.from_plain(TransformerConfig, {"patch_size": 4}, "here")


@pytest.mark.parametrize("scanned", [True, False])
def test_rules_split_columns_then_rows(scanned):
    model = dataclasses.replace(MODEL, scan_layers=scanned, activation="swiglu")
    shapes = jax.eval_shape(lambda: Transformer(model).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
    where = shardings_for(shapes, language.RULES, make_mesh(MeshConfig(data=4, tensor=2)))
    layer, lead = (where["layers"], (None,)) if scanned else (where["layer_0"], ())
    for branch, name in (("attn", "query"), ("attn", "key"), ("attn", "value"), ("mlp", "up"), ("mlp", "gate")):
        assert tuple(layer[branch][name]["kernel"].spec) == (*lead, None, "tensor"), name
    for branch, name in (("attn", "out"), ("mlp", "down")):
        assert tuple(layer[branch][name]["kernel"].spec) == (*lead, "tensor"), name
