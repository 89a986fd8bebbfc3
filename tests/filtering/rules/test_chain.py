"""The chain: one verdict a document that depends on nothing but the document."""

import dataclasses
import random
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import errors
from alignment.filtering.rules import chain, locales
from tests.filtering.rules import rule_pack
from tests.filtering.rules.test_c4 import FIVE
from tests.filtering.rules.test_gopher import FAILING

CHAIN = ("length", "gopher_repetition", "gopher_quality", "c4", "fineweb")
PACKS = {"en": rule_pack.ENGLISH}
SENTENCES = [
    "The committee met on Tuesday and agreed to the plan that had been put to it.",
    "Nobody who was asked could say with certainty what the weather would be like!",
    "Is it of any use to have a map when all of the roads have been moved?",
    "She said that the boats of the fishermen were out and would not be back by noon.",
    "In the end, a dozen people came with their chairs, and that was enough.",
    "Prices rose by 3.5% in May, e.g. for bread, milk and the like.",
    "menu | home | about", "Read our privacy policy.", "{ x = 1 }", "- item", "...", "Lorem ipsum dolor sit amet.",
]  # fmt: skip
DOCUMENT = st.lists(st.sampled_from(SENTENCES), max_size=14, unique=True).flatmap(
    lambda found: st.sampled_from(["\n", " ", "\n\n"]).map(lambda separator: separator.join(found))
)


def apply(texts, names=CHAIN, **named):
    return chain.apply(rule_pack.records(texts), chain=names, **{"settings": {}, "packs": PACKS} | named)


NOUNS = "river market teacher garden letter winter bridge doctor island kitchen window harbour forest summer ladder"
VERBS = "crossed painted followed carried answered measured remembered repaired counted borrowed visited watched"
PLACES = "north of town|by noon|without a word|for years|in spring|at dawn|under the old roof|before supper|on foot"


def good(seed, num_lines=8):
    """A document that every rule keeps."""
    rng = random.Random(seed)
    nouns, verbs, places = NOUNS.split(), VERBS.split(), PLACES.split("|")
    subjects = [f"{rng.choice(['The', 'A', 'Our', 'Every'])} {noun}" for noun in nouns]
    return "\n".join(
        f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(['that', 'the', 'a'])} {rng.choice(nouns)} and "
        f"{rng.choice(verbs)} {rng.choice(nouns)} {i} {rng.choice(places)}."
        for i in range(num_lines)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(DOCUMENT, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_batches_or_order(texts, rng):
    texts = [*texts, good(7)]
    together = apply(texts)
    assert together[-1].reason == ""
    assert together == [apply([text])[0] for text in texts]
    order = list(range(len(texts)))
    rng.shuffle(order)
    assert apply([texts[i] for i in order]) == [together[i] for i in order]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), DOCUMENT)
def test_kept_text_is_kept_as_it_is_the_second_time(seed, extra):
    kept = [verdict.text for verdict in apply([good(seed), good(seed, 16) + "\n" + extra, extra]) if not verdict.reason]
    assert good(seed) in kept
    assert [verdict.text for verdict in apply(kept) if not verdict.reason] == kept


ODD = [
    "",
    "\n",
    "...",
    "•",
    "😀😀😀",
    "x" * 1_000_000,
    "\x00\x01\x1f\x7f",
    "\u200b",
    "\ufeff",
    "\r\r\n",
    "ﷺ",
    "\ud800",
    ".",
]
ODD += ["مرحبا بالعالم هذا نص قصير", "a\u0301" * 50, "- " * 1000, "\u2028" * 9, "#" * 5000, "!?" * 3000, "{", "\t\t"]


def test_odd_texts_are_dropped_without_an_error():
    for names in [CHAIN, *[(name,) for name in CHAIN]]:
        together = apply(ODD, names)
        assert together == [apply([text], names)[0] for text in ODD]
    assert [bool(verdict.reason) for verdict in apply(ODD)] == [True] * len(ODD)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=100), max_size=4))
def test_any_text_at_all_gets_a_verdict(texts):
    assert len(apply(texts)) == len(texts)
    for name in CHAIN:
        assert len(apply(texts, [name])) == len(texts)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab .\n-•…#", max_size=60))
def test_no_threshold_of_any_rule_divides_by_zero(text):
    off = {
        "length": dict(min_characters=None),
        "gopher_quality": dict.fromkeys(["min_words", "max_words", "min_mean_word_length", "min_stop_words"]),
        "c4": dict(min_sentences=None, min_words_per_line=None, terminal_punctuation=False),
        "fineweb": dict(max_newlines_per_word=0.0, min_punctuated_lines=0.0),
        "gopher_repetition": dict(top_n_grams=((1, 0.5),), duplicate_n_grams=((1, 0.9), (2, 0.0))),
    }
    for name in CHAIN:
        apply([text], [name], settings=off)


def test_the_first_rule_that_drops_is_named():
    verdicts = apply([good(0), "hello world", FAILING["gopher_enough_stop_words"], ""])
    assert [(verdict.rule, verdict.reason) for verdict in verdicts] == [
        ("", ""),
        ("gopher_repetition", "top_2_gram"),
        ("gopher_repetition", "top_2_gram"),
        ("length", "empty"),
    ]
    assert verdicts[1].value == pytest.approx(1) and verdicts[1].threshold == 0.2 and verdicts[0].language == "en"


def test_later_rules_see_the_text_that_earlier_ones_left():
    lines = [f"a line that goes on for longer than thirty characters {n}" for n in range(9)]
    text = FIVE + "\n" + "\n".join(lines)
    assert apply([text], ["fineweb"])[0].reason == "line_punct_ratio"
    verdict = apply([text], ["c4", "fineweb"])[0]
    assert verdict.reason == "" and verdict.text == FIVE


def test_settings_go_before_the_packs_and_the_packs_before_the_rules_own():
    pack = dataclasses.replace(rule_pack.ENGLISH, overrides={"length": {"min_characters": 5}})
    assert apply(["four"], ["length"], packs={"en": pack})[0].reason == "too_short"
    assert apply(["four"], ["length"], packs={"en": pack}, settings={"length": {"min_characters": 4}})[0].reason == ""
    assert apply(["four"], ["length"])[0].reason == ""


def test_a_pack_can_switch_a_rule_off():
    pack = dataclasses.replace(rule_pack.ENGLISH, overrides={"gopher_quality": None})
    counters = {}
    assert apply(["short"], ["gopher_quality"], packs={"en": pack}, counters=counters)[0].reason == ""
    assert counters == {"gopher_quality/off": 1}


def identify(texts):
    return [
        ("ar", 0.9) if any("ء" <= c <= "ي" for c in text) else ("en", 0.5 if "?" in text else 1.0) for text in texts
    ]


def test_language_chooses_the_pack_and_drops_what_has_none_or_is_unsure():
    packs = {"en": rule_pack.ENGLISH}
    verdicts = apply(["hello", "مرحبا", "what?"], ["language"], packs=packs, language_fn=identify)
    assert [(verdict.reason, verdict.language) for verdict in verdicts] == [
        ("", "en"),
        (chain.UNKNOWN_LANGUAGE, "ar"),
        ("language_score", "en"),
    ]
    assert [verdict.attributes["language_probability"] for verdict in verdicts] == [1.0, 0.9, 0.5]
    arabic = dataclasses.replace(rule_pack.ENGLISH, name="ar", overrides={"length": {"min_characters": 9}})
    verdicts = apply(["hello", "مرحبا"], ["language", "length"], packs=packs | {"ar": arabic}, language_fn=identify)
    assert [verdict.reason for verdict in verdicts] == ["", "too_short"]


def test_language_is_asked_only_about_documents_still_there():
    asked = []
    apply(["", "hello"], ["length", "language"], language_fn=lambda texts: asked.extend(texts) or identify(texts))
    assert asked == ["hello"]


def test_unknown_rules_and_settings_and_no_pack_are_refused_before_any_work():
    for named in (
        {"names": ["gopher"]},
        {"names": ["length"], "settings": {"nonsense": {}}},
        {"names": ["gopher_quality"], "settings": {"gopher_quality": {"min_word": 3}}},
        {"names": ["length"], "packs": {}},
    ):
        with pytest.raises(errors.InputError, match=r"is not one of|name at least"):
            apply(["x"], **named)


def test_counters_add_up_over_calls():
    counters = {}
    for _ in range(2):
        apply([FIVE + "\nno mark here"], ["c4"], counters=counters)
    assert counters == {"c4/lines_no_end_mark": 2}


def test_a_long_document_gets_its_verdict_in_linear_memory():
    peaks = []
    for copies in (200, 800):
        text = "\n".join(good(seed) for seed in range(copies))
        tracemalloc.start()
        apply([text])
        peaks.append(tracemalloc.get_traced_memory()[1] / len(text))
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] and peaks[1] < 60  # bytes a character


def test_rules_start_without_jax():
    code = "import sys; from alignment.filtering.rules import chain; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"gopher_quality": {"min_word": 3}}, "min_words"),
        ({"gopher_qualty": {}}, "gopher_quality"),
        ({"gopher_quality": {"min_words": "three"}}, "a number or null"),
    ],
)
def test_overrides_of_a_pack_that_no_rule_has_are_refused_before_any_work(overrides, match):
    pack = dataclasses.replace(locales.load("en"), overrides=overrides)
    with pytest.raises(errors.InputError, match=match):
        chain.validate(["gopher_quality"], {}, {"en": pack})
