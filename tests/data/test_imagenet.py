"""The committed facts about ImageNet."""

import re

import numpy as np

from flashjax.data import imagenet


def test_classes_are_a_thousand_sorted_ids_with_different_names() -> None:
    wnids, names = imagenet.wnids(), imagenet.class_names()
    assert len(wnids) == len(names) == 1000
    assert list(wnids) == sorted(set(wnids))
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    assert len(set(names)) == 1000
    assert all(name and name == name.strip() for name in names)


def test_well_known_classes_are_where_every_classifier_has_them() -> None:
    names = imagenet.class_names()
    known = {0: "tench", 1: "goldfish", 151: "Chihuahua", 207: "golden retriever", 281: "tabby", 963: "pizza"}
    assert {index: names[index] for index in known} == known
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")
    assert imagenet.wnids()[999] == "n15075141"


def test_22k_rows_are_distinct_and_inside_the_head() -> None:
    rows = imagenet.head_22k_to_1k()
    assert rows.shape == (1000,)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == 1000
    assert rows.min() >= 0
    assert rows.max() < 21841
    # Both lists are sorted by id, so the rows grow, but for the teddy bear that the larger list lacks.
    without_teddy = np.delete(rows, 850)
    assert (np.diff(without_teddy) > 0).all()
    assert rows[850] == 5564
