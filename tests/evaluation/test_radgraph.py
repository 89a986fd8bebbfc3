"""F1-RadGraph on annotations worked out by hand; they annotate no real report."""

import pytest

from alignment.errors import InputError
from alignment.evaluation import radgraph


def entity(tokens, label, *relations):
    return {"tokens": tokens, "label": label, "relations": [list(relation) for relation in relations]}


LUNG, SMALL = entity("lung", "ANAT-DP"), entity("small", "OBS-DP", ("modify", "3"))
REFERENCE = {"entities": {"1": LUNG, "2": SMALL, "3": entity("Effusion", "OBS-DP", ("located_at", "1"))}}


def test_each_level_asks_for_more():
    candidate = {
        "entities": {
            "1": LUNG,
            "2": entity("small", "OBS-DP"),
            "3": entity("effusion", "OBS-DP", ("suggestive_of", "1")),
        }
    }
    # entities: 3 of 3 and 3; with whether there are relations: lung and effusion; with the relations themselves: lung
    assert radgraph.f1(candidate, REFERENCE) == pytest.approx({"simple": 1.0, "partial": 2 / 3, "complete": 1 / 3})


def test_an_annotation_agrees_with_itself_in_any_numbering_and_an_empty_one_with_none():
    renamed = {"entities": {"7": REFERENCE["entities"]["1"], "8": entity("small", "OBS-DP", ("modify", "9"))}}
    renamed["entities"]["9"] = entity("effusion", "OBS-DP", ("located_at", "7"))
    assert radgraph.f1(renamed, REFERENCE) == {"simple": 1.0, "partial": 1.0, "complete": 1.0}
    empty = {"entities": {}}
    assert set(radgraph.f1(empty, REFERENCE).values()) == set(radgraph.f1(empty, empty).values()) == {0.0}


def test_a_label_is_part_of_what_is_stated():
    one, other = ({"entities": {"1": entity("edema", label)}} for label in ("OBS-DP", "OBS-DA"))
    assert radgraph.f1(one, other)["simple"] == 0


@pytest.mark.parametrize("broken", [{}, {"entities": [1]}, {"entities": {"1": entity("a", "b", ("modify", "2"))}}])
def test_an_annotation_of_another_form_is_refused(broken):
    with pytest.raises(InputError, match="entities with tokens, label and relations"):
        radgraph.f1(broken, REFERENCE)
