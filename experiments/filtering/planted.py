"""How much of what is known to be in a filter's input was treated as it should be: recall and precision by kind.

A file of such knowledge has a JSON line for each document, {"id", "planted", "asked"}: the document's kind and the key
of TREATMENTS that this kind asks for. The toy web comes with one (experiments/filtering/toy.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import errors

TREATMENTS: dict[str, Callable[[Mapping[str, Any]], bool]] = {  # of a decision: whether it is this
    "kept": lambda row: row["action"] == "keep" and row["rule"] != "gate",
    "rewritten or dropped for harm": lambda row: (
        row["action"] != "keep" and row["rule"] in ("router", "rewriter", "gate")
    ),
    "dropped as a duplicate": lambda row: row["rule"] == "duplicates",
    "dropped for its language": lambda row: row["rule"] == "language",
    "dropped by another rule": lambda row: (
        row["action"] == "drop" and row["rule"] not in ("router", "rewriter", "gate", "duplicates", "language")
    ),
}


def measure(
    planted: Sequence[Mapping[str, str]], decisions: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, float | None], list[str]]:
    """Recall and precision of what was planted: rows of a table, numbers of the summary, and sentences.

    Recall: of the documents of a kind, the share treated as it asks for. Precision: of the documents treated so, the
    share whose kind asks for it. `identity_rate`: of the documents of kind "clean" that were not dropped, the share
    that was not rewritten.

    Args:
        planted: rows of the file.
        decisions: {id: decision}.
    """
    wanted = {row["id"]: errors.one_of("asked", row["asked"], TREATMENTS) for row in planted}
    decided = {id: decisions[id] for id in wanted if id in decisions}
    treated = {name: {id for id, row in decided.items() if fits(row)} for name, fits in TREATMENTS.items()}
    rows, summary = [], {}
    for kind, treatment in dict.fromkeys((row["planted"], row["asked"]) for row in planted):
        ids = {row["id"] for row in planted if row["planted"] == kind}
        right = sum(wanted[id] == treatment for id in treated[treatment])
        row = {"planted": kind, "documents": len(ids), "asked": treatment}
        row |= {"recall": len(ids & treated[treatment]) / len(ids)}
        row |= {"precision": right / len(treated[treatment]) if treated[treatment] else None}
        rows.append(row)
        summary |= {f"planted/{kind}/recall": row["recall"], f"planted/{kind}/precision": row["precision"]}
    clean = [decided[row["id"]] for row in planted if row["planted"] == "clean" and row["id"] in decided]
    stay = [row for row in clean if row["action"] != "drop"]
    num_rewritten = sum(row["action"] == "rewrite" for row in clean)
    summary |= {"clean_rewritten": num_rewritten, "identity_rate": 1 - num_rewritten / len(stay) if stay else None}
    shares = ", ".join(f"{row['planted']} {100 * row['recall']:.0f} %" for row in rows)
    lines = [
        f"Of what was planted this share was treated as it asks for: {shares}.",
        f"Clean documents rewritten: {num_rewritten} of {len(stay)}.",
    ]
    return rows, summary, lines
