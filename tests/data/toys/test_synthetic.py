import statistics

import pytest

from alignment.errors import InputError
from data.texts import preferences, text
from data.tokens import tokenizer
from data.toys import synthetic

PAIRS = synthetic.preference_pairs(2_000, seed=0)


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data():
    for make in (synthetic.preference_pairs, synthetic.documents, synthetic.conversations):
        assert make(50, seed=1) == make(50, seed=1) != make(50, seed=2)
        assert make(80, seed=1)[:50] == make(50, seed=1)


def test_prompts_differ_from_each_other_and_from_the_documents():
    prompts = {r["prompt"] for r in PAIRS}
    assert len(prompts) == 2_000
    assert not prompts & {r["text"].partition("\nGuide:")[0] + "\nGuide:" for r in synthetic.documents(3_000)}


def test_texts_are_short():
    assert max(len(r["prompt"]) + max(len(r["chosen"]), len(r["rejected"])) for r in PAIRS) <= 126
    assert statistics.mean(len(r["prompt"]) + len(r["chosen"]) for r in PAIRS) < 100


def test_length_does_not_tell_the_answers_apart():
    longer = statistics.mean(
        (len(r["chosen"]) > len(r["rejected"])) + 0.5 * (len(r["chosen"]) == len(r["rejected"])) for r in PAIRS
    )
    assert abs(longer - 0.5) < 0.05


def test_no_single_word_tells_the_answers_apart():
    words = {w for r in PAIRS for w in (r["chosen"] + r["rejected"]).split()}
    for word in words:
        hits = [statistics.mean(word in r[side].split() for r in PAIRS) for side in ("chosen", "rejected")]
        assert abs(hits[0] - hits[1]) < 0.4, word
    for at in (0, -1):  # nor the first or the last word
        assert len({r["chosen"].split()[at] for r in PAIRS}) > 5 < len({r["rejected"].split()[at] for r in PAIRS})


def test_chosen_answers_state_the_fact_and_are_never_curt():
    curt = (*synthetic.CURT_FIRST, *synthetic.CURT_LAST, *synthetic.SHRUGS)
    kind = (*synthetic.KIND_FIRST, *synthetic.KIND_LAST)
    for r in PAIRS[:500]:
        assert not any(c in r["chosen"] for c in curt) and any(k in r["chosen"] for k in kind)
        assert any(c in r["rejected"] for c in curt) and not any(k in r["rejected"] for k in kind)
    facts = [synthetic.fact(topic, x) for topic, (things, _, _) in synthetic.TOPICS.items() for x in things]
    assert all(any(f in r["chosen"] for f in facts) for r in PAIRS)
    assert len({f.split(" is ")[0] for f in facts}) == len(facts)


def test_embedded_data_load_by_name():
    tok = tokenizer.load("bytes")
    train, heldout, _ = preferences.load(path="synthetic", tokenizer=tok, limit=200, seed=1)
    assert len(train) + len(heldout) == 200 and len(heldout) > 5
    assert {item.source for item in train.items} == set(synthetic.TOPICS)
    for name in ("synthetic", "synthetic:documents", "synthetic:conversations"):
        assert len(text.load(path=name, tokenizer=tok, max_len=256, limit=50)[0]) > 5
    with pytest.raises(InputError, match="synthetic:nothing"):
        text.load(path="synthetic:nothing", tokenizer=tok, max_len=256)
