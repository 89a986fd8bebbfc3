"""From documents to decisions: rules, duplicates, scores, router, rewriter and gates.

Pure functions on lists of documents {"id", "text", "source", "metadata"}. experiments/filter.py maps them over slices
of files; `clean` takes a list that fits in memory through all of them. What each step may rely on:

    screen      any text at all, the empty one included
    keys        texts that passed the rules, after the rules' edits
    duplicates  keys of the whole corpus: the first document of a group stays, in corpus order
    align       texts that passed and are nobody's duplicate, each with its row of scores
"""

import dataclasses
import hashlib
from collections.abc import Callable, Container, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from alignment.filtering import router
from alignment.filtering.duplicates import bands, clusters, exact, minhash
from alignment.filtering.rewriting import gates
from alignment.filtering.rules import chain, locales

Scores = Mapping[str, float | None]
Bounds = Mapping[str, tuple[float | None, float | None]]
KINDS = {"rewrite": "rewrite", "synthesise": "educate"}  # router action -> kind of text that the rewriter writes


@dataclasses.dataclass(frozen=True)
class Screening:
    """The rules and the duplicate search of a run.

    Args:
        chain: names of rules, in order.
        settings: thresholds by rule.
        packs: locale packs by language.
        language_fn: texts -> (language, probability) each.
        minhash: settings of the near-duplicate search; None leaves it out.
        exact: whether to look for equal texts.
    """

    chain: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    packs: Mapping[str, locales.Pack]
    language_fn: Callable[[Sequence[str]], Sequence[tuple[str, float]]] | None
    minhash: minhash.Settings | None
    exact: bool


@dataclasses.dataclass(frozen=True)
class Aligning:
    """Thresholds, rewriter and gates of a run.

    Args:
        score: name of the deciding score; "" without one, and then every document within the bounds is kept.
        keep_at, drop_at, synthesise: see `router.route`.
        bounds: {name of a score: (least, most)}; a document with a score outside them is dropped, None lifts a bound.
        tag_probability, seed: see `router.tag`; 0 tags nothing.
        rewrite: (documents, kind) -> the new text of each, None where the rewriter gave no answer. Without a rewriter
            (None) every document that needs one counts as unanswered.
        gates: keyword arguments of `gates.check_all`: thresholds and the functions that measure.
        worker_id, prompt_version: names of the rewriter and its code of conduct; each decision records them.
    """

    score: str = ""
    keep_at: int = 0
    drop_at: int = 4
    synthesise: bool = False
    bounds: Bounds = dataclasses.field(default_factory=dict)
    tag_probability: float = 0.0
    seed: int = 0
    rewrite: Callable[[Sequence[dict], str], Sequence[str | None]] | None = None
    gates: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    worker_id: str = ""
    prompt_version: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a document: its decision, its text (None: dropped), and the gates' verdict if it met them."""

    decision: dict[str, Any]
    text: str | None
    gate: gates.Gate | None = None


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def decision(
    document: Mapping[str, Any], action: str, rule: str, reason: str, evidence: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """A row of the decision log: one of `router.ACTIONS`, the rule that decided and its evidence.

    `more` fills the columns that are empty otherwise, such as `worker_id`.
    """
    row = {"id": document["id"], "source": document["source"], "action": action, "rule": rule, "reason": reason}
    empty = {"text_sha256_in": "", "text_sha256_out": "", "worker_id": "", "prompt_version": ""}
    return row | {"evidence": dict(evidence)} | empty | more


def screen(
    documents: Sequence[dict], tools: Screening, counters: MutableMapping[str, int] | None = None
) -> list[chain.Verdict]:
    """The rules' verdict on each document, with its text after their edits (C4's rules take lines out)."""
    return chain.apply(
        documents,
        chain=tools.chain,
        settings=tools.settings,
        packs=tools.packs,
        language_fn=tools.language_fn,
        counters=counters,
    )


def keys(documents: Sequence[dict], tools: Screening) -> dict[str, np.ndarray]:
    """Keys under which duplicates meet, uint64; documents are duplicates where their keys are equal.

    Returns:
        "id" [N, 2] and, if asked for, "exact" [N, 2]: the whole row counts. "minhash" [N, bands]: one equal entry of
        a column is enough.
    """
    texts = [document["text"] for document in documents]
    keys_of = {"id": exact.identifier_keys([d["source"] for d in documents], [d["id"] for d in documents])}
    if tools.exact:
        keys_of["exact"] = exact.keys(texts)
    if tools.minhash is not None:
        keys_of["minhash"] = minhash.band_keys(minhash.signatures(texts, tools.minhash), tools.minhash)
    return keys_of


def align(documents: Sequence[dict], scores: Sequence[Scores], tools: Aligning) -> list[Outcome]:
    """Route documents by their scores, rewrite those that need it, and let only the gates accept a rewritten text.

    Args:
        documents: those that passed the rules and are nobody's duplicate, with the rules' edits in their texts.
        scores: {name: value} for each document. The deciding score goes from 0 (suitable for all) to 5 and is None
            where a judge gave no answer. An entry "<scorer>.other_language" says that the scorer does not read the
            document's language; such a document is kept.
    """
    outcomes: dict[int, Outcome] = {}
    waiting: dict[str, list[int]] = {action: [] for action in KINDS}  # places of the documents for the rewriter
    for place, (document, row) in enumerate(zip(documents, scores, strict=True)):
        if out_of_bounds := _outside(row, tools.bounds):  # such a document is never routed, whatever its deciding score
            outcomes[place] = _outcome(document, "drop", None, "scores", *out_of_bounds)
            continue
        evidence = {tools.score: row.get(tools.score)}
        action = _action(row, tools)
        if action in waiting:
            waiting[action].append(place)
        elif action == "not_scored":
            outcomes[place] = _outcome(document, "keep", document["text"], "router", "not_scored", {})
        elif action == "keep":
            outcomes[place] = _outcome(document, "keep", document["text"], "router", "", evidence)
        else:
            outcomes[place] = _outcome(
                document, "drop", None, "router", "unsafe" if action == "drop" else action, evidence
            )
    for action, places in waiting.items():
        # All documents of one kind go to the rewriter together, so that it can fill its batches.
        rewritten = _rewritten([documents[i] for i in places], [scores[i] for i in places], action, tools)
        outcomes |= dict(zip(places, rewritten, strict=True))
    return [_tagged(outcomes[place], row.get(tools.score), tools) for place, row in enumerate(scores)]


def falls(scores: Scores, tools: Aligning) -> bool:
    """Whether its scores drop a document, so that no rewriter is asked for it."""
    return _outside(scores, tools.bounds) is not None or _action(scores, tools) in ("drop", "not_judged")


def stand_ins(heads: Mapping[Any, Any], fallen: Container[Any]) -> dict[Any, Any]:
    """{document that stays of its group of copies and has fallen: the first near copy of it that has not}.

    Args:
        heads: near copy -> the document that stays in its place; places are ordered.
        fallen: places of documents that their scores drop.
    """
    chosen: dict[Any, Any] = {}
    for place in sorted(heads):
        if heads[place] in fallen and place not in fallen:
            chosen.setdefault(heads[place], place)
    return chosen


def _action(scores: Scores, tools: Aligning) -> str:
    """One of `router.ACTIONS`, or why there is no score to route by: "not_scored" or "not_judged"."""
    scorer = tools.score.split(".")[0]
    if not tools.score or f"{scorer}.other_language" in scores:
        return "not_scored"
    value = scores.get(tools.score)
    if value is None:
        return "not_judged"
    return router.route(value, keep_at=tools.keep_at, drop_at=tools.drop_at, synthesise=tools.synthesise)


def _rewritten(documents: Sequence[dict], scores: Sequence[Scores], action: str, tools: Aligning) -> list[Outcome]:
    """Ask the rewriter for new texts and let the gates judge them."""
    if not documents:
        return []
    kind = KINDS[action]
    texts = tools.rewrite(documents, kind) if tools.rewrite is not None else [None] * len(documents)
    values = [row.get(tools.score) for row in scores]
    verdicts = gates.check_all([d["text"] for d in documents], texts, scores=values, kind=kind, **tools.gates)
    return [
        _gated(document, action, text, gate, {tools.score: value}, tools)
        for document, text, gate, value in zip(documents, texts, verdicts, values, strict=True)
    ]


def _outside(scores: Scores, bounds: Bounds) -> tuple[str, dict[str, float]] | None:
    """The first score that is out of bounds, as a reason and its evidence."""
    for name, (least, most) in bounds.items():
        value = scores.get(name)
        if value is not None and least is not None and value < least:
            return f"{name}_low", {name: value, "threshold": least}
        if value is not None and most is not None and value > most:
            return f"{name}_high", {name: value, "threshold": most}
    return None


def _outcome(
    document: dict,
    action: str,
    text: str | None,
    rule: str,
    reason: str,
    evidence: Mapping[str, Any],
    gate: gates.Gate | None = None,
    **more: Any,
) -> Outcome:
    """What becomes of a document: `text` goes to training, or nothing where it is None."""
    digest = "" if text is None else sha256(text)
    return Outcome(decision(document, action, rule, reason, evidence, text_sha256_out=digest, **more), text, gate)


def _gated(
    document: dict,
    action: str,
    text: str | None,
    gate: gates.Gate,
    evidence: Mapping[str, Any],
    tools: Aligning,
) -> Outcome:
    """The outcome of a rewritten text: accepted, unchanged, or the gates' fallback with the first failed check."""
    more = {"worker_id": tools.worker_id, "prompt_version": tools.prompt_version}
    evidence = {**evidence, "gates": gate.measurements}
    if gate.not_measured:
        evidence["not_measured"] = gate.not_measured
    if gate.accepted and gate.action == "keep":  # the rewriter saw no need for an edit
        return _outcome(document, "keep", document["text"], "rewriter", "unchanged", evidence, gate, **more)
    if gate.accepted and text is not None:  # the gates accept no missing text
        return _outcome(document, action, text, "rewriter", "", evidence, gate, **more)
    # What the gates refuse falls back to the original, or to nothing if the original is too unsafe.
    reason = "no_rewriter" if tools.rewrite is None else gate.failed[0]
    text = document["text"] if gate.action == "keep" else None
    action = "drop" if text is None else "keep"
    return _outcome(document, action, text, "gate", reason, evidence | {"failed": gate.failed}, gate, **more)


def _tagged(outcome: Outcome, value: float | None, tools: Aligning) -> Outcome:
    """Mark words of a text that is kept although its score is not a safe one's; see `router.tag`."""
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
    """Duplicates among documents in memory: {place: ("duplicate_exact" or "duplicate_near", place that stays)}.

    Args:
        keys_of: the result of `keys`; "id" is not used.
    """
    exact = _groups(keys_of, ("exact",))
    return {
        at: ("duplicate_exact" if at in exact else "duplicate_near", original)
        for at, original in _groups(keys_of).items()
    }


def _groups(keys_of: Mapping[str, np.ndarray], names: Sequence[str] = ("exact", "minhash")) -> dict[int, int]:
    pairs = []
    for name in names:
        keys_NB = keys_of.get(name, np.empty((0, 0), np.uint64))
        # An exact key is the whole row; of MinHash every column is a key by itself.
        columns = [keys_NB] if name == "exact" else list(keys_NB.T)
        for key_N in columns:
            if not len(key_N):
                continue
            # Linking each document to the first with its key is enough: `solve` joins the links into groups.
            _, first, inverse = np.unique(key_N, axis=0, return_index=True, return_inverse=True)
            first_N = first[inverse.reshape(-1)]
            is_other_N = (first_N != np.arange(len(first_N))) & (key_N != bands.NO_KEY).reshape(len(key_N), -1).any(1)
            other = np.flatnonzero(is_other_N)
            zeros = np.zeros(len(other), np.int64)
            pairs.append(np.stack([zeros, first_N[other], zeros, other], axis=1))
    return {at: original for (_, at), (_, original) in clusters.solve(pairs).as_dict().items()}


def clean(
    documents: Sequence[dict],
    screening: Screening,
    score_fn: Callable[[Sequence[dict]], Sequence[Scores]] | None,
    aligning: Aligning,
) -> tuple[list[dict], list[dict]]:
    """Take documents in memory through all steps, as experiments/filter.py does with files.

    Args:
        score_fn: documents -> a row of scores each; None leaves scoring out.

    Returns:
        The documents for training, and a decision for every document in order.
    """
    verdicts = screen(documents, screening)
    rows = [
        decision(d, "drop", v.rule, v.reason, {"value": v.value, "threshold": v.threshold}) if v.reason else {}
        for d, v in zip(documents, verdicts, strict=True)
    ]
    places = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
    passed = [documents[i] | {"text": verdicts[i].text} for i in places]
    gone = duplicates(keys(passed, screening))
    near = {at: first for at, (reason, first) in gone.items() if reason == "duplicate_near"}
    waiting = [at for at in range(len(passed)) if at not in gone or at in near]
    scored = score_fn([passed[at] for at in waiting]) if score_fn is not None else [{} for _ in waiting]
    scores_of = dict(zip(waiting, scored, strict=True))
    new_heads = stand_ins(near, {at for at, scores in scores_of.items() if falls(scores, aligning)})
    gone = {at: (why, new_heads.get(head, head)) for at, (why, head) in gone.items() if at not in new_heads.values()}
    unique_places = [at for at in waiting if at not in gone]
    unique, scores = [passed[at] for at in unique_places], [scores_of[at] for at in unique_places]
    for at, (reason, first) in gone.items():
        rows[places[at]] = decision(passed[at], "drop", "duplicates", reason, {"stands_back_for": places[first]})
    accepted = []
    for at, outcome in zip(unique_places, align(unique, scores, aligning), strict=True):
        rows[places[at]] = outcome.decision
        if outcome.text is not None:
            accepted.append(passed[at] | {"text": outcome.text})
    # The hash of the text as it came, before the rules edited it.
    for document, row in zip(documents, rows, strict=True):
        row["text_sha256_in"] = sha256(document["text"])
    return accepted, rows
