"""From documents to decisions: screened by rules, compared with each other, scored, routed, rewritten, gated.

Pure functions on lists of documents {"id", "text", "source", "metadata"}. experiments/filter.py maps them over slices
of files; `clean` takes a list that fits in memory through all of them.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from alignment.filtering import router
from alignment.filtering.duplicates import bands, clusters, exact, minhash
from alignment.filtering.rewriting import gates
from alignment.filtering.rules import chain, locales

Scores = Mapping[str, float | None]
KINDS = {"rewrite": "rewrite", "synthesise": "educate"}  # what a rewriter is asked for, by action


@dataclasses.dataclass(frozen=True)
class Screening:
    """What documents are screened with.

    Args:
        chain: names of rules, in order.
        settings: thresholds by rule.
        packs: locale packs by language.
        language_fn: texts -> (language, probability) each.
        minhash: settings of the near-duplicate search; None leaves it out.
        exact: whether equal texts are found.
    """

    chain: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    packs: Mapping[str, locales.Pack]
    language_fn: Callable | None
    minhash: minhash.Settings | None
    exact: bool


@dataclasses.dataclass(frozen=True)
class Aligning:
    """What documents are routed and rewritten with.

    Args:
        score: name of the score that decides; "" where nothing was scored, and then every document is kept.
        keep_at, drop_at, synthesise: see `router.route`.
        bounds: {name of a score: (least, most)}; a document with a score outside is dropped; None lifts a bound.
        tag_probability, seed: see `router.tag`; 0 tags nothing.
        rewrite: (documents, kind) -> the new text of each, or None where there is none after all tries; None: no
            rewriter, and what it would have got is treated as if it had failed.
        gates: keyword arguments of `gates.check_all`: thresholds and the functions that measure.
        worker_id, prompt_version: of the rewriter and its code of conduct; they go into each decision.
    """

    score: str = ""
    keep_at: int = 0
    drop_at: int = 4
    synthesise: bool = False
    bounds: Mapping[str, tuple[float | None, float | None]] = dataclasses.field(default_factory=dict)
    tag_probability: float = 0.0
    seed: int = 0
    rewrite: Callable[[Sequence[dict], str], Sequence[str | None]] | None = None
    gates: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    worker_id: str = ""
    prompt_version: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a document: its decision, its text (None: dropped), and the safety score of that text."""

    decision: dict[str, Any]
    text: str | None
    gate: Any = None


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def decision(document: Mapping[str, Any], action: str, rule: str, reason: str, evidence: Mapping[str, Any], **more):
    """A row of the decision log: one of keep, rewrite, synthesise or drop, and what it rests on."""
    row = {"id": document["id"], "source": document["source"], "action": action, "rule": rule, "reason": reason}
    none = {"text_sha256_in": "", "text_sha256_out": "", "worker_id": "", "prompt_version": ""}
    return row | {"evidence": dict(evidence)} | none | more


def screen(
    documents: Sequence[dict], tools: Screening, counters: MutableMapping[str, int] | None = None
) -> list[chain.Verdict]:
    """What the rules say of each document; its text may be edited, such as lines taken out by C4's rules."""
    return chain.apply(
        documents,
        chain=tools.chain,
        settings=tools.settings,
        packs=tools.packs,
        language_fn=tools.language_fn,
        counters=counters,
    )


def keys(documents: Sequence[dict], tools: Screening) -> dict[str, np.ndarray]:
    """By what duplicates are found: equal rows of "id" or "exact", equal entries of a column of "minhash"."""
    texts = [document["text"] for document in documents]
    found = {"id": exact.identifier_keys([d["source"] for d in documents], [d["id"] for d in documents])}
    if tools.exact:
        found["exact"] = exact.keys(texts)
    if tools.minhash is not None:
        found["minhash"] = minhash.band_keys(minhash.signatures(texts, tools.minhash), tools.minhash)
    return found


def align(documents: Sequence[dict], scores: Sequence[Scores], tools: Aligning) -> list[Outcome]:
    """Route documents by their scores; rewrite those that need it, and accept a rewriting only through the gates.

    Args:
        documents: what is left after rules and duplicates.
        scores: {name: value} of each; the deciding one from 0 (suitable for all) to 5, None where a judge gave none.
            Where "<scorer>.other_language" stands in its place the document was not asked about, and is kept.
    """
    outside = [_outside(found, tools.bounds) for found in scores]
    if not tools.score:
        return [
            _dropped(document, "scores", *found) if found else _kept(document, "router", "not_scored", {})
            for document, found in zip(documents, outside, strict=True)
        ]
    values = [found.get(tools.score) for found in scores]
    options = {"keep_at": tools.keep_at, "drop_at": tools.drop_at, "synthesise": tools.synthesise}
    foreign = f"{tools.score.split('.')[0]}.other_language"
    actions = [
        "outside"
        if out
        else "unscored"
        if foreign in found
        else "drop"
        if value is None
        else router.route(value, **options)
        for value, out, found in zip(values, outside, scores, strict=True)
    ]
    answers: dict[int, tuple[str | None, gates.Gate]] = {}
    for action, kind in KINDS.items():
        places = [i for i, found in enumerate(actions) if found == action]
        asked = [documents[i] for i in places]
        texts = tools.rewrite(asked, kind) if tools.rewrite is not None and asked else [None] * len(asked)
        known = [values[i] for i in places]
        found = gates.check_all([d["text"] for d in asked], texts, scores=known, kind=kind, **tools.gates)
        answers |= dict(zip(places, zip(texts, found, strict=True), strict=True))
    outcomes = []
    for i, (document, value, action) in enumerate(zip(documents, values, actions, strict=True)):
        evidence = {tools.score: value}
        if action == "outside":
            outcomes.append(_dropped(document, "scores", *outside[i]))
        elif action == "unscored":
            outcomes.append(_kept(document, "router", "not_scored", {}))
        elif action == "keep":
            outcomes.append(_kept(document, "router", "", evidence))
        elif action == "drop":
            reason = "not_judged" if value is None else "unsafe"
            outcomes.append(_dropped(document, "router", reason, evidence))
        else:
            outcomes.append(_gated(document, action, *answers[i], evidence, tools))
    return [_tagged(outcome, value, tools) for outcome, value in zip(outcomes, values, strict=True)]


def _outside(scores: Scores, bounds) -> tuple[str, dict[str, float]] | None:
    """The first score that is out of bounds, as a reason and its evidence."""
    for name, (least, most) in bounds.items():
        value = scores.get(name)
        if value is not None and least is not None and value < least:
            return f"{name}_low", {name: value, "threshold": least}
        if value is not None and most is not None and value > most:
            return f"{name}_high", {name: value, "threshold": most}
    return None


def _kept(document, rule, reason, evidence, gate=None, **more) -> Outcome:
    row = decision(document, "keep", rule, reason, evidence, text_sha256_out=sha256(document["text"]), **more)
    return Outcome(row, document["text"], gate)


def _dropped(document, rule, reason, evidence, gate=None, **more) -> Outcome:
    return Outcome(decision(document, "drop", rule, reason, evidence, text_sha256_out="", **more), None, gate)


def _gated(document, action, text, gate, evidence, tools) -> Outcome:
    """What was asked of the rewriter, as the gates left it: accepted, unchanged, or the fallback with the reason."""
    more = {"worker_id": tools.worker_id, "prompt_version": tools.prompt_version}
    evidence = evidence | {"gates": gate.measurements}
    if gate.not_measured:
        evidence["not_measured"] = gate.not_measured
    if gate.accepted and gate.action == "keep":
        return _kept(document, "rewriter", "unchanged", evidence, gate, **more)
    if gate.accepted:
        row = decision(document, action, "rewriter", "", evidence, text_sha256_out=sha256(text), **more)
        return Outcome(row, text, gate)
    reason = "no_rewriter" if tools.rewrite is None else gate.failed[0]
    make = _kept if gate.action == "keep" else _dropped
    return make(document, "gate", reason, evidence | {"failed": gate.failed}, gate, **more)


def _tagged(outcome: Outcome, value: float | None, tools: Aligning) -> Outcome:
    """Words of a text that stays although its score is not that of a safe one may be marked; see `router.tag`."""
    row = outcome.decision
    if not tools.tag_probability or outcome.text is None or value is None or row["action"] != "keep":
        return outcome
    options = {"seed": tools.seed, "document_id": row["id"], "probability": tools.tag_probability}
    text = router.tag(outcome.text, score=value, keep_at=tools.keep_at, **options)
    if text == outcome.text:
        return outcome
    changed = row | {"reason": row["reason"] or "tagged", "tagged": True, "text_sha256_out": sha256(text)}
    return dataclasses.replace(outcome, decision=changed, text=text)


def duplicates(keys_of: Mapping[str, np.ndarray]) -> dict[int, tuple[str, int]]:
    """Of documents in memory: {place: ("duplicate_exact" or "duplicate_near", place of the one that stays)}.

    Args:
        keys_of: what `keys` gives; "id" is not looked at.
    """
    exact = _groups(keys_of, ("exact",))
    return {at: ("duplicate_exact" if at in exact else "duplicate_near", kept) for at, kept in _groups(keys_of).items()}


def _groups(keys_of, names: Sequence[str] = ("exact", "minhash")) -> dict[int, int]:
    pairs = []
    for name in names:
        keys_NB = keys_of.get(name, np.empty((0, 0), np.uint64))
        columns = [keys_NB] if name == "exact" else list(keys_NB.T)
        for key_N in columns:
            if not len(key_N):
                continue
            _, first, inverse = np.unique(key_N, axis=0, return_index=True, return_inverse=True)
            first_N = first[inverse.reshape(-1)]
            is_other_N = (first_N != np.arange(len(first_N))) & (key_N != bands.NO_KEY).reshape(len(key_N), -1).any(1)
            other = np.flatnonzero(is_other_N)
            zeros = np.zeros(len(other), np.int64)
            pairs.append(np.stack([zeros, first_N[other], zeros, other], axis=1))
    return {at: kept for (_, at), (_, kept) in clusters.solve(pairs).as_dict().items()}


def clean(
    documents: Sequence[dict], screening: Screening, score_fn: Callable | None, aligning: Aligning
) -> tuple[list[dict], list[dict]]:
    """Documents in memory through all steps, as experiments/filter.py takes files.

    Args:
        score_fn: documents -> scores of each; None where nothing is scored.

    Returns:
        What goes to training, and a decision for every document in order.
    """
    verdicts = screen(documents, screening)
    rows = [
        decision(d, "drop", v.rule, v.reason, {"value": v.value, "threshold": v.threshold}) if v.reason else {}
        for d, v in zip(documents, verdicts, strict=True)
    ]
    places = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
    passed = [documents[i] | {"text": verdicts[i].text} for i in places]
    gone = duplicates(keys(passed, screening))
    for at, (reason, kept) in gone.items():
        rows[places[at]] = decision(passed[at], "drop", "duplicates", reason, {"stands_back_for": places[kept]})
    left = [at for at in range(len(passed)) if at not in gone]
    asked = [passed[at] for at in left]
    scores = score_fn(asked) if score_fn is not None else [{} for _ in asked]
    kept = []
    for at, outcome in zip(left, align(asked, scores, aligning), strict=True):
        rows[places[at]] = outcome.decision
        if outcome.text is not None:
            kept.append(passed[at] | {"text": outcome.text})
    for document, row in zip(documents, rows, strict=True):
        row["text_sha256_in"] = sha256(document["text"])
    return kept, rows
