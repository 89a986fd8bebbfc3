"""The rules by name, and a chain of them over a list of documents.

A chain stops for a document at the first rule that drops it. Verdicts are a function of the document, the chain and its
settings alone: neither the other documents of the list nor their order matter.
"""

import collections
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from alignment import errors
from alignment.filtering.rules import c4, fineweb, gopher, locales, repetition
from alignment.filtering.rules.batch import Batch, Findings

UNKNOWN_LANGUAGE = "other_language"


@dataclasses.dataclass(slots=True)
class Verdict:
    """A chain's verdict on one document.

    Fields:
        reason: "" for a document that passes every rule, else the code of the check that dropped it.
        rule: the name of the rule with that check; "" when it passes.
        value, threshold: what the check measured and what it compared it with.
        text: the text after the edits of the rules that ran.
        language: the identified language; "" for a document that was dropped before the identification.
        attributes: measurements by name, such as `language_probability`.
    """

    reason: str
    rule: str
    value: float
    threshold: float
    text: str
    language: str
    attributes: dict[str, float]


def length(batch: Batch, *, min_characters: int | None = 1, max_characters: int | None = None) -> Findings:
    """Drop texts without content ("empty") and those outside a range of characters; None lifts a bound."""
    findings = Findings.passing(len(batch))
    for position, text in enumerate(batch.texts):
        if not text or text.isspace():
            findings.fail(position, "empty", 0, 1)
        elif min_characters is not None and len(text) < min_characters:
            findings.fail(position, "too_short", len(text), min_characters)
        elif max_characters is not None and len(text) > max_characters:
            findings.fail(position, "too_long", len(text), max_characters)
    return findings


def language(batch: Batch, *, min_probability: float | None = 0.65) -> Findings:
    """Drop documents whose language is too uncertain; those of a language without a pack are dropped earlier.

    0.65 is FineWeb's threshold for fastText's identifier.
    """
    findings = Findings.passing(len(batch))
    findings.attributes["language_probability"] = list(batch.probabilities)
    if min_probability is not None:
        probability_N = np.asarray(batch.probabilities)
        findings.fail_where(probability_N < min_probability, "language_score", probability_N, min_probability)
    return findings


@dataclasses.dataclass(frozen=True)
class _Lazy:
    """A rule whose module is imported at its first use, so that a worker starts without it."""

    module: str
    function: str

    def target(self) -> Callable[..., Findings]:
        return getattr(importlib.import_module(f"alignment.filtering.rules.{self.module}"), self.function)

    def __call__(self, batch: Batch, **settings: Any) -> Findings:
        return self.target()(batch, **settings)


RULES: dict[str, Callable[..., Findings]] = {
    "length": length,
    "mojibake": _Lazy("mojibake", "rule"),
    "url": _Lazy("urls", "rule"),
    "language": language,
    "wordlist": _Lazy("wordlists", "rule"),
    "gopher_repetition": repetition.check,
    "gopher_quality": gopher.quality,
    "c4": c4.clean,
    "fineweb": fineweb.check,
    "nemo": _Lazy("nemo", "check"),
    "pii": _Lazy("pii", "rule"),
}


def defaults(name: str) -> dict[str, Any]:
    """The settings of a rule and their default values."""
    rule = RULES[name]
    function = rule.target() if isinstance(rule, _Lazy) else rule
    _, *settings = inspect.signature(function).parameters.values()  # the batch comes first
    return {setting.name: setting.default for setting in settings}


def validate(chain: Sequence[str], settings: Mapping[str, Mapping], packs: Mapping[str, locales.Pack]) -> None:
    """Check names of rules and settings, and that there is a pack, before any work.

    Raises:
        InputError: an unknown name, with the known ones, or no pack.
    """
    if not packs:
        raise errors.InputError("no locale pack: name at least one language, such as packs={'en': locales.load('en')}")
    for name in [*chain, *settings]:
        errors.one_of("rule", name, RULES)
    for name in dict.fromkeys(chain):
        for setting in settings.get(name, {}):
            errors.one_of(f"setting of rule {name!r}", setting, defaults(name))
    for pack in packs.values():
        _check_overrides(pack)


def _check_overrides(pack: locales.Pack) -> None:
    """Refuse overrides of a pack for rules and settings that there are not, and values of another type."""
    for name, overrides in pack.overrides.items():
        where = f"locale pack {pack.name!r}: overrides"
        errors.one_of(f"{where}, rule", name, RULES)
        for setting, value in (overrides or {}).items():
            errors.one_of(f"{where}, setting of rule {name!r}", setting, defaults(name))
            default = defaults(name)[setting]
            takes_number = default is None or isinstance(default, (int, float))
            is_number = value is None or isinstance(value, (int, float))
            if (takes_number and not is_number) or (
                isinstance(default, tuple) and not isinstance(value, (list, tuple))
            ):
                kind = "a number or null" if takes_number else "a list"
                raise errors.InputError(
                    f"{where}.{name}.{setting}={value!r}: it takes {kind}; its default is {default!r}"
                )


def apply(
    records: Sequence[Mapping],
    *,
    chain: Sequence[str],
    settings: Mapping[str, Mapping],
    packs: Mapping[str, locales.Pack],
    language_fn: Callable[[Sequence[str]], Sequence[tuple[str, float]]] | None = None,
    counters: MutableMapping[str, int] | None = None,
) -> list[Verdict]:
    """Run a chain of rules over documents.

    Args:
        records: documents, {"id", "text", "source", "metadata"} each.
        chain: names of `RULES`, in the order in which they run.
        settings: a rule's name to its thresholds. They override the pack's, which override the rule's defaults.
        packs: language to locale pack. The first one serves rules that run before "language" in the chain, and all
            documents when there is no `language_fn`.
        language_fn: texts to (language, probability) each. It runs where "language" stands in the chain, on the
            documents that passed so far, or at the start when the chain has no such rule. A document of a language
            without a pack is dropped (`other_language`).
        counters: the rules' counters are added to it.

    Returns:
        One verdict a document, in order.

    Raises:
        InputError: see `validate`.
    """
    validate(chain, settings, packs)
    verdicts = [Verdict("", "", 0.0, 0.0, record["text"], "", {}) for record in records]
    default = next(iter(packs))
    state = _State(records, verdicts, settings, packs, collections.Counter() if counters is None else counters)
    # A group is the documents of one language that passed so far: their positions and their batch.
    groups = {default: (list(range(len(records))), Batch(records, packs[default]))}
    if language_fn is None:
        for verdict in verdicts:
            verdict.language = default
    elif "language" not in chain:
        groups = state.regroup(groups, language_fn)
    for name in chain:
        if name == "language":
            if language_fn is None:  # nothing identifies languages, so the rule has nothing to check
                continue
            groups = state.regroup(groups, language_fn)
        groups = {key: state.step(name, *group) for key, group in groups.items() if group[0]}
    return verdicts


@dataclasses.dataclass
class _State:
    """The data of one `apply` that all its steps read or change."""

    records: Sequence[Mapping]
    verdicts: list[Verdict]
    settings: Mapping[str, Mapping]
    packs: Mapping[str, locales.Pack]
    counters: MutableMapping[str, int]

    def step(self, name: str, positions: list[int], batch: Batch) -> tuple[list[int], Batch]:
        """Run one rule over one language's documents; return the positions and the batch of those that pass."""
        overrides = batch.pack.overrides.get(name, {})
        if overrides is None:  # the pack switches the rule off for its language
            self._add({f"{name}/off": len(batch)})
            return positions, batch
        findings = RULES[name](batch, **{**overrides, **self.settings.get(name, {})})
        self._add({f"{name}/{key}": amount for key, amount in findings.counters.items()})
        passing = []
        for i, (position, reason) in enumerate(zip(positions, findings.reasons, strict=True)):
            verdict = self.verdicts[position]
            for key, values in findings.attributes.items():
                verdict.attributes[key] = values[i]
            if reason:
                verdict.reason, verdict.rule = reason, name
                verdict.value, verdict.threshold = findings.values[i], findings.thresholds[i]
            else:
                passing.append(i)
                verdict.text = findings.texts.get(i, verdict.text)
        batch = batch.with_texts(findings.texts).take(passing)
        return [positions[i] for i in passing], batch

    def regroup(self, groups: dict, language_fn: Callable) -> dict[str, tuple[list[int], Batch]]:
        """Identify the documents that passed so far, drop those without a pack, group the others by language."""
        # Sorted, so that batches, and with them everything a rule computes, do not depend on the groups before.
        positions = sorted(position for members, _ in groups.values() for position in members)
        texts = [self.verdicts[position].text for position in positions]
        members: dict[str, list[tuple[int, float]]] = {}
        for position, (name, probability) in zip(positions, language_fn(texts) if texts else [], strict=True):
            verdict = self.verdicts[position]
            verdict.language = name
            verdict.attributes["language_probability"] = float(probability)
            if name in self.packs:
                members.setdefault(name, []).append((position, float(probability)))
            else:
                verdict.reason, verdict.rule, verdict.value = UNKNOWN_LANGUAGE, "language", float(probability)
        return {name: self._batch(name, members[name]) for name in self.packs if name in members}

    def _batch(self, name: str, members: list[tuple[int, float]]) -> tuple[list[int], Batch]:
        positions = [position for position, _ in members]
        batch = Batch(
            [self.records[position] for position in positions],
            self.packs[name],
            texts=[self.verdicts[position].text for position in positions],
            languages=[name] * len(positions),
            probabilities=[probability for _, probability in members],
        )
        return positions, batch

    def _add(self, amounts: Mapping[str, int]) -> None:
        for key, amount in amounts.items():
            self.counters[key] = self.counters.get(key, 0) + amount
