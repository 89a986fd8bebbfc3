"""F1-RadGraph: how far two radiology reports state the same findings, by their annotations (arXiv:2210.12186).

An annotation is what RadGraph's model, which is not part of this project, makes of a report:
`{"entities": {"1": {"tokens": "effusion", "label": "OBS-DP", "relations": [["located_at", "2"]]}, ...}}`.
"""

from collections.abc import Mapping
from typing import Any

from alignment.errors import InputError

SIMPLE, PARTIAL, COMPLETE = LEVELS = ("simple", "partial", "complete")


def f1(candidate: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """F1 of the sets of what two annotations state, in [0, 1], at the three levels of the paper.

    simple: entities, each with its tokens and label. partial: the same, and whether it has a relation; this is the
    number that summaries of MIMIC are scored by. complete: an entity without a relation, or each relation with its kind
    and the tokens at its other end. Two annotations without any entity agree in nothing and have 0, as in the public
    code.
    """
    sides = [stated(annotation) for annotation in (candidate, reference)]
    return {level: _f1(*(side[level] for side in sides)) for level in LEVELS}


def stated(annotation: Mapping[str, Any]) -> dict[str, frozenset[tuple]]:
    """What one annotation states, by level; tokens count without their case.

    Raises:
        InputError: an annotation of another form, or a relation to an entity that is not there.
    """
    simple: set[tuple] = set()
    partial: set[tuple] = set()
    complete: set[tuple] = set()
    try:
        entities = annotation["entities"]
        for entity in entities.values():
            own = (entity["tokens"].lower(), entity["label"])
            relations = [(kind, entities[other]["tokens"].lower()) for kind, other in entity["relations"]]
            simple.add(own)
            partial.add((*own, bool(relations)))
            complete |= {(*own, *relation) for relation in relations} or {own}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(
            f"an annotation of RadGraph has entities with tokens, label and relations: {type(e).__name__} {e}"
        ) from None
    return {SIMPLE: frozenset(simple), PARTIAL: frozenset(partial), COMPLETE: frozenset(complete)}


def _f1(candidate: frozenset[tuple], reference: frozenset[tuple]) -> float:
    return 2 * len(candidate & reference) / max(len(candidate) + len(reference), 1)
