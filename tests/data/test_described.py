"""Data that are described: the same shapes as the data themselves, and no batch."""

import dataclasses

import pytest

from flashjax import data
from flashjax.data import DataConfig, TextConfig, described


def test_a_described_image_set_has_the_leaves_of_a_real_one():
    config = DataConfig(dataset="digits", image_size=28, batch_size=64, eval_batch_size=50)
    train, evaluation, info = data.classification(config, None, 0)
    with described.allowed(classes=info.num_classes):
        stood_in = data.classification(dataclasses.replace(config, dataset="imagenet2012"), None, 0)
        real, *_ = data.classification(config, None, 0)  # what is embedded is opened
    assert real.batch(0)["image"].shape == (64, 28, 28, 3)
    assert (stood_in[0].spec, stood_in[1].spec) == (train.spec, evaluation.spec)
    assert stood_in[2].num_classes == info.num_classes
    with pytest.raises(ValueError, match="--data_dir"):
        stood_in[0].batch(0)
    with pytest.raises(ValueError, match="--data_dir"):
        data.classification(dataclasses.replace(config, dataset="imagenet2012"), None, 0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("documents", ["joined", "separate"])
def test_a_described_text_has_the_leaves_of_a_real_one(causal, documents):
    config = TextConfig(length=64, batch_size=8, eval_batch_size=8, documents=documents)
    train, evaluation, _ = data.language(config, None, 0, causal=causal)
    with described.allowed(vocab_size=32000):
        stood_in = data.language(dataclasses.replace(config, dataset="pg19"), None, 0, causal=causal)
    assert (stood_in[0].spec, stood_in[1].spec) == (train.spec, evaluation.spec)
    assert stood_in[2].vocab_size == 32000 == len(stood_in[2].token_bytes)
