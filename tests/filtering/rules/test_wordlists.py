"""Word lists with inert, made-up entries against a brute-force search."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import errors
from alignment.filtering.rules import locales, wordlists
from alignment.filtering.rules.batch import Batch

EN, AR = locales.load("en"), locales.load("ar")
LINES = ["# made-up words", "zorp", "Blick", "blick zorp", "glim glam glum", "", "zorp  # said twice"]


def batch(texts, pack=EN):
    return Batch([{"id": str(i), "text": text, "source": "", "metadata": {}} for i, text in enumerate(texts)], pack)


def slow_spans(text, entries):
    """The longest entry at each word, word by word, on plain text of words and single spaces."""
    found, words = [], [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]
    i = 0
    while i < len(words):
        for length in range(len(words) - i, 0, -1):
            start, end = words[i][0], words[i + length - 1][1]
            if text[start:end].lower() in entries:
                found.append((start, end))
                i += length
                break
        else:
            i += 1
    return found


@given(st.lists(st.lists(st.sampled_from("zorp Blick glim GLAM glum a zorps".split()), max_size=12), max_size=5))  # noqa: SIM905
@settings(max_examples=150, deadline=None)
def test_hits_agree_with_brute_force(documents):
    texts = [" ".join(words) for words in documents]
    word_list = wordlists.make(LINES, EN)
    slow = [slow_spans(text, {"zorp", "blick", "blick zorp", "glim glam glum"}) for text in texts]
    assert wordlists.hits(batch(texts), word_list).tolist() == [len(found) for found in slow]


def test_hits_ignore_punctuation_and_case():
    text = 'The "ZORP", she said: a blick\nzorp (glim glam glum).'
    assert wordlists.hits(batch([text]), wordlists.make(LINES, EN)).tolist() == [3]


def test_a_word_inside_a_longer_one_is_no_hit_and_phrases_end_with_their_document():
    word_list = wordlists.make(LINES, EN)
    assert wordlists.hits(
        batch(["zorpish unzorp", "glim glam", "glum glim", "glim glam glum"]), word_list
    ).tolist() == [0, 0, 0, 1]


def test_arabic_is_compared_without_vowel_signs_and_past_what_is_written_onto_a_word():
    word_list = wordlists.make(["أزرقون", "بيت أزرقون"], AR)  # made up
    texts = ["قال اَزرَقون وكتب", "والأزرقون للأزرقون", "في بيت أزرقون هنا", "أزرقونات"]
    assert wordlists.hits(batch(texts, AR), word_list).tolist() == [1, 2, 1, 0]


def test_counts_do_not_depend_on_the_other_documents():
    texts = ["a zorp", "nothing", "blick zorp zorp", "x " * 50 + "glim glam glum"]
    word_list = wordlists.make(LINES, EN)
    alone = [int(wordlists.hits(batch([text]), word_list)[0]) for text in texts]
    assert wordlists.hits(batch(texts), word_list).tolist() == alone == [1, 0, 2, 1]
    assert wordlists.hits(batch(texts).take([3, 1]), word_list).tolist() == [1, 0]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "made_up.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    return str(file)


def test_the_rule_drops_by_share_or_by_count(path):
    texts = ["a zorp in four", "word " * 150 + "zorp", "word " * 150 + "zorp zorp zorp", "word"]
    findings = wordlists.rule(batch(texts), paths={"en": [path]})
    assert findings.reasons == ["wordlist", "", "wordlist", ""]
    assert findings.attributes["wordlist_hits"] == [1, 1, 3, 0]
    assert findings.attributes["wordlist_share"] == [1 / 4, 1 / 151, 3 / 153, 0]
    assert (findings.values[0], findings.thresholds[0]) == (0.25, 0.01)
    assert wordlists.rule(batch(texts), paths=[path], max_share=None, max_hits=0).reasons == ["wordlist"] * 3 + [""]
    assert wordlists.rule(batch(texts), paths=path, max_share=None).reasons == [""] * 4


def test_a_language_without_a_list_passes_and_is_counted(path):
    findings = wordlists.rule(batch(["zorp"], AR), paths={"en": [path]})
    assert findings.reasons == [""] and findings.counters == {"no_wordlist": 1}


@pytest.mark.parametrize(
    ("content", "match"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8 at byte 0"), (b"# x\n\n", "no entries")]
)
def test_unusable_files_are_refused(tmp_path, content, match):
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(errors.InputError, match=match):
        wordlists.load([file], EN)


def test_public_lists_hit_few_ordinary_documents(shared_data):
    folder = shared_data / "wordlist_ldnoobw_ar_en"
    for name, pack, path, least in (
        ("en", EN, "text_en_web/c4_demo.jsonl", 0.97),
        ("ar", AR, "text_ar_wikipedia_arcd/arcd_train.jsonl", 0.97),
    ):
        word_list = wordlists.load([folder / f"{name}.txt"], pack)
        assert len(word_list.entries) == len(
            {pack.comparison_key(line) for line in (folder / f"{name}.txt").read_text("utf-8").split("\n") if line}
        )
        texts = [json.loads(line)["text"] for line in (shared_data / path).read_text("utf-8").splitlines()]
        hits_N = wordlists.hits(batch(texts, pack), word_list)
        assert (hits_N == 0).mean() >= least
