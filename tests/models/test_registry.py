"""Models by name."""

import pytest

from flashjax import models
from flashjax.models import registry
from flashjax.models.swin import SwinTransformer


def test_overrides_replace_fields_of_the_named_configuration():
    model = models.create("swin_tiny_patch4_window7_224", num_classes=10, depths=[1, 1, 1, 1])
    assert isinstance(model, SwinTransformer)
    assert (model.config.num_classes, model.config.depths, model.config.embed_dim) == (10, (1, 1, 1, 1), 96)
    assert models.config("swin_tiny_patch4_window7_224").num_classes == 1000


def test_an_unknown_name_is_an_error_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"unknown model 'swin_tny'; nearest: .*swin_tiny_patch4_window7_224"):
        models.create("swin_tny")


def test_an_unknown_override_is_an_error_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"has no argument 'windw_size'; nearest: window_size"):
        models.create("swin_tiny_patch4_window7_224", windw_size=8)


def test_names_match_a_pattern():
    assert models.names("swinv2_tiny_*") == ["swinv2_tiny_window16_256", "swinv2_tiny_window8_256"]
    assert models.names("nothing*") == []
    assert "swin_base_patch4_window12_384" in models.names()


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(SwinTransformer, {"swin_tiny_patch4_window7_224": None})
