"""The authors' CEBaB file, where a user has it: PLUMBLINE_CONCEPT_FILES names the folder `data` of their repository."""

import os
import pathlib

import numpy as np
import pytest

from alignment.concepts import bag, bias, rebalance
from data.texts import concept_sets

COUNTS = {  # training texts with the concept by label, and counterfactuals that each label lacks
    "food": ([1012, 1108, 1179, 1141, 1141], [167, 71, 0, 38, 38]),
    "service": ([788, 805, 828, 809, 783], [40, 23, 0, 19, 45]),
    "ambiance": ([426, 537, 628, 644, 513], [218, 107, 16, 0, 131]),
}
TESTED = {"food": 1_528, "service": 1_132, "ambiance": 701}  # test texts with the concept
BIASES = {"food": (4.61, 19.22), "service": (-1.33, 11.12), "ambiance": (0.54, 9.81)}  # original, biased


@pytest.fixture(scope="module")
def released():
    folder = os.environ.get("PLUMBLINE_CONCEPT_FILES", "")
    path = pathlib.Path(folder) / "chatgpt_concepts_cebab_exp.jsonl"
    if not folder or not path.is_file():
        pytest.skip("PLUMBLINE_CONCEPT_FILES names no folder with the authors' CEBaB file")
    rows = concept_sets.load(str(path), counts={}).rows
    train, _, test = concept_sets.split(rows, how=concept_sets.RELEASED, test=2_000, validation=0, seed=10)
    return [rows[i] for i in train], [rows[i] for i in test]


def arrays(rows, concept):
    labels_N = np.array([row.label for row in rows])
    return [row.text for row in rows], labels_N, np.array([concept in row.concepts for row in rows])


@pytest.mark.parametrize("concept", COUNTS)
def test_label_counts_and_needs_are_those_of_the_released_split(released, concept):
    _, labels_N, has_N = arrays(released[0], concept)
    counts, needs = COUNTS[concept]
    assert rebalance.counts(labels_N, has_N, 5).tolist() == counts
    assert rebalance.needs(rebalance.counts(labels_N, has_N, 5)).tolist() == needs
    assert arrays(released[1], concept)[2].sum() == TESTED[concept]


@pytest.mark.slow
@pytest.mark.parametrize("concept", BIASES)
def test_a_bag_of_words_has_the_known_bias_on_the_released_split(released, concept):
    texts, labels_N, has_N = arrays(released[0], concept)
    test, test_labels_N, test_has_N = arrays(released[1], concept)
    found = []
    for index in (np.arange(len(texts)), rebalance.biased(labels_N, has_N, rebalance.positive(5))):
        fitted = bag.fit([texts[i] for i in index], labels_N[index], bag.Options())
        right_N = fitted.predict(test) == test_labels_N
        found.append(100 * bias.measure(right_N, test_labels_N, test_has_N, num_labels=5, resamples=0).bias)
    np.testing.assert_allclose(found, BIASES[concept], atol=0.3)
    assert found[1] - found[0] > 8
