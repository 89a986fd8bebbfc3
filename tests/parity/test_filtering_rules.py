"""Rules beside datatrove 0.10: the same decisions for the same reasons on real English text, whole and damaged."""

import json
import random
import re

import pytest

from alignment.filtering.rules import chain, locales, splitter
from tests.filtering.rules import rule_pack, rule_twins

filters = pytest.importorskip("datatrove.pipeline.filters")
pytest.importorskip("spacy")
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.filters import c4_filters  # noqa: E402
from datatrove.pipeline.filters import fineweb_quality_filter as fineweb_filter  # noqa: E402
from datatrove.pipeline.filters import gopher_quality_filter as quality_filter  # noqa: E402
from datatrove.pipeline.filters import gopher_repetition_filter as repetition_filter  # noqa: E402
from datatrove.utils.word_tokenizers import load_word_tokenizer  # noqa: E402

CHAIN = ("gopher_repetition", "gopher_quality", "c4_open", "fineweb")
PEERS = {
    "gopher_repetition": filters.GopherRepetitionFilter(),
    "gopher_quality": filters.GopherQualityFilter(),
    "fineweb": filters.FineWebQualityFilter(),
    "c4": filters.C4QualityFilter(),
    "c4_open": filters.C4QualityFilter(filter_no_terminal_punct=False),
}
REASONS = (
    "dup_line_frac dup_line_char_frac dup_para_frac dup_para_char_frac top_2_gram top_3_gram top_4_gram "
    "duplicated_5_n_grams duplicated_10_n_grams gopher_short_doc gopher_below_avg_threshold gopher_above_avg_threshold "
    "gopher_too_many_hashes gopher_too_many_ellipsis gopher_too_many_bullets gopher_too_many_end_ellipsis "
    "gopher_below_alpha_threshold gopher_enough_stop_words lorem_ipsum curly_bracket too_few_sentences "
    "line_punct_ratio short_line_ratio char_dup_ratio list_ratio"
)  # all but gopher_long_doc, which takes datatrove half a minute


def _json_lines(path, *keys):
    found = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [row[key] for row in found for key in keys if isinstance(row.get(key), str) and row[key].strip()]


def _paragraphs(text, size=2500):
    """Whole paragraphs joined to documents of about `size` characters."""
    documents, gathered = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        gathered += paragraph.strip() + "\n\n"
        if len(gathered) > size:
            documents.append(gathered.strip())
            gathered = ""
    return documents


def _damaged(text, number, rng):
    """One way or another of spoiling a document."""
    lines = [line for line in text.splitlines() if line.strip()] or [text]
    words, sentences = text.split(), re.split(r"(?<=[.!?])\s+", text)
    a_line, a_word = rng.choice(lines), max(words[:50], key=len)
    ways = [
        lambda: "\n".join(lines + [a_line] * (len(lines) // 2 + 1)),
        lambda: "\n\n".join([*lines, *lines[: len(lines) // 3 + 1]]),
        lambda: "\n\n".join(sentences + sentences[:3] * 3),
        lambda: "\n".join([*sentences, max(sentences, key=len)]),
        lambda: "\n".join(f"- {sentence}" for sentence in sentences),
        lambda: "\n".join(sentence + (" ..." if i % 2 else "") for i, sentence in enumerate(sentences)),
        lambda: re.sub(r"(\w+ \w+ \w+) ", r"\1 # ", text),
        lambda: re.sub(r"(\w+ \w+ \w+) ", r"\1... ", text),
        lambda: re.sub(r"(\w+ \w+) ", r"\1 42 ", text),
        lambda: " ".join(word.title() for word in words),
        lambda: " ".join(word[:2] for word in words),
        lambda: " ".join(word * 3 for word in words),
        lambda: "\n".join(" ".join(words[i : i + 3]) + "." for i in range(0, len(words), 3)),
        lambda: "\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)),
        lambda: text + "\nLorem ipsum dolor sit amet.",
        lambda: text + "\nfunction () { return here.",
        lambda: re.sub(r"[.!?]", ",", text),
        lambda: f"{text} {' '.join([a_word] * (len(words) // 5))}",
        lambda: " ".join(words + words[:14] * max(2, len(words) // 60)),
        lambda: " ".join(" ".join([*words[i : i + 25], "as we said before"]) for i in range(0, len(words), 25)),
        lambda: " ".join(words + words[: len(words) // 8 + 10]),
        lambda: re.sub(r"(\. )", r".[12]  ", text) + "\nuse of cookies is here.\nplease enable javascript for it.",
        lambda: " ".join(words[:48]),
        lambda: "\n".join(f"{word:x<32}{i}." for i, word in enumerate(words) if word.isalpha()),
    ]
    return ways[number % len(ways)]()


@pytest.fixture(scope="module")
def texts(shared_data):
    rng = random.Random(0)
    web = _json_lines(shared_data / "text_en_web" / "c4_demo.jsonl", "text")
    answers = _json_lines(shared_data / "pref_alpaca_eval" / "alpaca_eval_gpt4_pairs_a.jsonl", "output_1", "output_2")
    talk = _json_lines(shared_data / "pref_hh_harmless" / "hh_harmless_base_test_a.jsonl", "chosen")
    context = _json_lines(shared_data / "text_xquad_ar_en" / "xquad_en_a.jsonl", "text")
    books = _paragraphs((shared_data / "text_en_books" / "botchan.txt").read_text("utf-8"))
    wiki = _paragraphs((shared_data / "text_en_web" / "wiki_demo.txt").read_text("utf-8"))
    tokenized = (shared_data / "text_en_wikitext2" / "wikitext2_valid.txt").read_text("utf-8").replace("\n =", "\n\n =")
    sources = [web, web, _paragraphs("\n\n".join(context)), context, books, wiki, _paragraphs(tokenized), answers, talk]
    sources.append(_paragraphs("\n\n".join(talk)))
    whole = [text[:4000] for source in sources if source for text in rng.sample(source, min(40, len(source)))]
    damaged = [_damaged(rng.choice(whole), number, rng) for number in range(288)]
    return [text for text in whole + damaged if text.strip()]


def theirs(text, name):
    document = Document(text=text, id="")
    result = PEERS[name].filter(document)
    return ("", document.text) if result is True else (result[1], None)


def their_chain(text, alone):
    for name in CHAIN:
        reason, text = alone[name] if name in ("gopher_repetition", "gopher_quality") else theirs(text, name)
        if reason:
            return reason, None
    return "", text


def ours(texts, rules):
    settings = {"c4": {"terminal_punctuation": "c4_open" not in rules}}
    names = ["c4" if name == "c4_open" else name for name in rules]
    verdicts = chain.apply(rule_pack.records(texts), chain=names, settings=settings, packs={"en": locales.load("en")})
    return [(verdict.reason, None if verdict.reason else verdict.text) for verdict in verdicts]


def with_our_words(monkeypatch):
    """Let datatrove's filters take our words and sentences."""
    for module in (quality_filter, repetition_filter, fineweb_filter):
        monkeypatch.setattr(module, "split_into_words", lambda text, language: rule_twins.words_of(text))
    ends = locales.load("en").sentence_end
    monkeypatch.setattr(
        c4_filters, "split_into_sentences", lambda text, language: [text] * rule_twins.sentences(text, ends)
    )


def test_decisions_and_texts_equal_datatroves_and_what_differs_is_the_words(texts, monkeypatch):
    alone = [
        {name: theirs(text, name) for name in ("gopher_repetition", "gopher_quality", "fineweb", "c4")}
        for text in texts
    ]
    expected = {name: [found[name] for found in alone] for name in alone[0]}
    expected["chain"] = [their_chain(text, found) for text, found in zip(texts, alone)]
    seen = {reason for found in expected.values() for reason, _ in found}
    assert seen >= set(REASONS.split()), sorted(set(REASONS.split()) - seen)
    with_our_words(monkeypatch)
    for name, their_results in expected.items():
        our_results = ours(texts, CHAIN if name == "chain" else [name])
        different = [i for i in range(len(texts)) if our_results[i] != their_results[i]]
        assert len(different) <= 0.02 * len(texts), (name, [(our_results[i], their_results[i]) for i in different[:5]])
        for i in different:
            again = {rule: theirs(texts[i], rule) for rule in ("gopher_repetition", "gopher_quality")}
            assert our_results[i] == (their_chain(texts[i], again) if name == "chain" else theirs(texts[i], name))


def test_words_equal_datatroves_in_nearly_all_documents(texts):
    tokenizer = load_word_tokenizer("en")
    sample = random.Random(1).sample(texts, 150)
    equal = [tokenizer.word_tokenize(text) == rule_twins.words_of(text) for text in sample]
    assert sum(equal) >= 0.995 * len(sample)


def test_a_disagreement_vanishes_when_both_get_the_same_words(monkeypatch):
    faces = ":):)%"  # spaCy sees a third face, "):", in the middle, and then joins only the first
    assert list(splitter.split(faces)) != load_word_tokenizer("en").word_tokenize(faces)
    text = " ".join(["the garden of that house"] * 16 + [faces] * 6)
    assert theirs(text, "gopher_quality")[0] == "gopher_below_alpha_threshold"
    assert ours([text], ["gopher_quality"])[0][0] == ""
    with_our_words(monkeypatch)
    assert theirs(text, "gopher_quality")[0] == ""
