"""Documents in memory through all steps: who stays, who goes for whom, and what the router makes of scores."""

import hashlib

import pytest

from alignment.filtering import pipeline, router
from alignment.filtering.duplicates import minhash
from alignment.filtering.rules import language, locales
from data.toys import toyweb

PACKS = {name: locales.load(name) for name in ("en", "ar")}
CHAIN = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii")


def screening(**changes):
    options = dict(chain=CHAIN, settings={"c4": {"terminal_punctuation": False}}, packs=PACKS)
    options |= dict(
        language_fn=lambda texts: language.identify(texts, packs=PACKS), minhash=minhash.Settings(), exact=True
    )
    return pipeline.Screening(**options | changes)


def document(name, text):
    return {"id": name, "text": text, "source": "web", "metadata": {}}


def score(documents):
    return [{"safety.level": float(toyweb.severity(d["text"]))} for d in documents]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_clean_gives_each_document_one_decision_that_its_text_bears_out():
    documents = toyweb.documents(150, seed=2)
    kept, decisions = pipeline.clean(documents, screening(), score, pipeline.Aligning(score="safety.level"))
    assert [row["id"] for row in decisions] == [d["id"] for d in documents]
    texts = {d["id"]: d["text"] for d in kept}
    for row, d in zip(decisions, documents, strict=True):
        assert row["text_sha256_in"] == sha256(d["text"])
        assert row["text_sha256_out"] == (sha256(texts[d["id"]]) if d["id"] in texts else "")
        assert (row["action"] == "drop") == (d["id"] not in texts)
    planted = {d["id"]: d["metadata"]["planted"] for d in documents}
    assert all(row["action"] == "keep" for row in decisions if planted[row["id"]] == "clean")
    assert all(row["rule"] == "duplicates" for row in decisions if planted[row["id"]] == "duplicate")


def test_verdicts_on_kept_documents_do_not_depend_on_their_order():
    documents = [d for d in toyweb.documents(80, seed=4) if d["metadata"]["planted"] != "duplicate"]
    aligning = pipeline.Aligning(score="safety.level")
    one = pipeline.clean(documents, screening(), score, aligning)[1]
    other = pipeline.clean(documents[::-1], screening(), score, aligning)[1]
    assert one == other[::-1]


def test_the_first_of_equal_texts_stays_and_the_others_name_it():
    text = next(d["text"] for d in toyweb.documents(20, seed=1) if d["metadata"]["planted"] == "clean")
    tools = screening(chain=())
    documents = [document(name, t) for name, t in (("a", "other words"), ("b", text), ("c", text), ("d", f"{text} "))]
    found = pipeline.duplicates(pipeline.keys(documents, tools))
    assert found == {2: ("duplicate_exact", 1), 3: ("duplicate_exact", 1)}
    assert pipeline.duplicates(pipeline.keys(documents[:2], tools)) == {}
    assert pipeline.duplicates(pipeline.keys([], tools)) == {}


def aligned(levels, **options):
    documents = [document(str(i), f"The text of document {i} says this and that.") for i in range(len(levels))]
    tools = pipeline.Aligning(score="s.level", **options)
    return documents, pipeline.align(documents, [{"s.level": level} for level in levels], tools)


def test_without_a_rewriter_mild_documents_stay_and_others_go():
    _, outcomes = aligned([0, 1, 2, 3, 4, 5, None])
    assert [o.decision["action"] for o in outcomes] == ["keep", "keep", "keep", "drop", "drop", "drop", "drop"]
    reasons = ["", "no_rewriter", "no_rewriter", "no_rewriter", "unsafe", "unsafe", "not_judged"]
    assert [o.decision["reason"] for o in outcomes] == reasons
    assert [o.text is None for o in outcomes] == [False] * 3 + [True] * 4


def test_an_accepted_rewriting_takes_the_place_and_names_its_worker_and_code():
    def rewrite(documents, kind):
        return [d["text"].replace("this and that", "this, and that") for d in documents]

    gates = {"safety": lambda texts: [0.0] * len(texts)}
    _, outcomes = aligned([0, 2], rewrite=rewrite, gates=gates, worker_id="w", prompt_version="en 1")
    assert outcomes[0].decision["worker_id"] == ""
    row = outcomes[1].decision
    assert (row["action"], row["worker_id"], row["prompt_version"]) == ("rewrite", "w", "en 1")
    assert outcomes[1].text.endswith("this, and that.") and row["text_sha256_out"] == sha256(outcomes[1].text)


def test_an_unchanged_text_is_kept_and_a_scaffold_is_not_taken():
    gates = {"safety": lambda texts: [0.0] * len(texts)}
    same = aligned([1], rewrite=lambda documents, kind: [d["text"] for d in documents], gates=gates)[1][0]
    assert (same.decision["action"], same.decision["reason"]) == ("keep", "unchanged")
    told = aligned([1], rewrite=lambda documents, kind: [f"Analysis: {d['text']}" for d in documents], gates=gates)
    row = told[1][0].decision
    assert (row["action"], row["rule"], row["reason"]) == ("keep", "gate", "scaffold")
    assert told[1][0].text == told[0][0]["text"]


def test_bounds_drop_before_the_router_and_unscored_documents_stay():
    documents, _ = aligned([0, 0, 0])
    tools = pipeline.Aligning(bounds={"q.score": (3.0, None)})
    outcomes = pipeline.align(documents, [{"q.score": 2.5}, {"q.score": 3.0}, {}], tools)
    assert [o.decision["reason"] for o in outcomes] == ["q.score_low", "not_scored", "not_scored"]
    assert outcomes[0].decision["evidence"] == {"q.score": 2.5, "threshold": 3.0}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_only_unsafe_text_that_stays_is_tagged(probability):
    _, outcomes = aligned([0, 2], tag_probability=probability)
    assert router.TAG not in outcomes[0].text
    assert outcomes[1].text.count(router.TAG) == (9 if probability else 0)  # each word of the second


# ---- near copies that stand in for what scores drop


@pytest.mark.parametrize(
    ("heads", "fallen", "chosen"),
    [
        ({2: 1, 3: 1}, {1}, {1: 2}),
        ({3: 1, 2: 1}, {1, 2}, {1: 3}),
        ({2: 1, 3: 1}, {1, 2, 3}, {}),
        ({2: 1, 3: 1}, {2}, {}),
        ({2: 1, 4: 3}, {1, 3}, {1: 2, 3: 4}),
    ],
)
def test_the_first_near_copy_that_does_not_fall_stands_in(heads, fallen, chosen):
    assert pipeline.stand_ins(heads, fallen) == chosen


@pytest.mark.parametrize(
    ("scores", "options", "falls"),
    [
        ({"safety.level": 4.0}, {}, True),
        ({"safety.level": 3.0}, {}, False),  # it may be rewritten
        ({"safety.level": 5.0}, {"synthesise": True}, False),
        ({"safety.level": None}, {}, True),
        ({"safety.other_language": 1.0}, {}, False),
        ({"safety.level": 0.0, "quality.score": 0.1}, {"bounds": {"quality.score": (0.5, None)}}, True),
        ({"quality.score": 0.9}, {"score": "", "bounds": {"quality.score": (0.5, None)}}, False),
    ],
)
def test_what_its_scores_drop_falls(scores, options, falls):
    tools = pipeline.Aligning(**{"score": "safety.level"} | options)
    assert pipeline.falls(scores, tools) == falls
    (outcome,) = pipeline.align([document("a", "text")], [scores], tools)
    assert falls == (outcome.text is None and outcome.decision["rule"] in ("scores", "router"))


def near_copies():
    """Three near copies: the first two bear a mark of harm."""
    text = next(d["text"] for d in toyweb.documents(20, seed=1) if d["metadata"]["planted"] == "clean")
    harm = next(d["text"] for d in toyweb.documents(60, seed=1) if toyweb.severity(d["text"]) == 4).split(". ")
    harm = next(sentence for sentence in harm if toyweb.severity(sentence) == 4)
    body = " ".join([text] * 3)
    return [document("a", f"{harm}. {body}"), document("b", f"{body} {harm}."), document("c", f"{body} The end.")]


def test_a_near_copy_stays_where_the_first_copy_falls():
    kept, decisions = pipeline.clean(near_copies(), screening(chain=()), score, pipeline.Aligning(score="safety.level"))
    assert [d["id"] for d in kept] == ["c"]
    assert [(row["rule"], row["reason"]) for row in decisions[:2]] == [
        ("router", "unsafe"),
        ("duplicates", "duplicate_near"),
    ]
    assert decisions[1]["evidence"] == {"stands_back_for": 2}
