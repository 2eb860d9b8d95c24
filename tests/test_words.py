"""Words for messages."""

import pytest

from flashjax.words import nearest


@pytest.mark.parametrize(
    ("word", "options", "wanted"),
    [
        ("adamv", {}, "adam, nadam, sgd"),
        ("ad", {"count": 1}, "adam"),
        ("na", {}, "nadam, adam, sgd"),
        ("ssgd", {"cutoff": 0.6}, "sgd"),
        ("lion", {"cutoff": 0.6}, ""),
    ],
)
def test_the_nearest_are_those_that_begin_so_then_the_most_like(word, options, wanted):
    assert nearest(word, ("sgd", "nadam", "adam"), **options) == wanted
