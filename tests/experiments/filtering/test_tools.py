"""What a filter run is made of: scorers of some languages, and settings that are refused before any work."""

import pytest

from alignment.errors import InputError
from alignment.filtering import pipeline
from alignment.filtering.rules import language
from experiments import filter as experiment
from experiments.filtering import settings as filter_settings
from experiments.filtering import tools as filter_tools
from experiments.launch import config
from experiments.pages import filter as filter_page

ENGLISH = "The river is the longest of them all, and it has been this way for more than a hundred years."
ARABIC = "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق، وقد وهبوا عقلًا وضميرًا."


def test_a_scorer_is_asked_about_its_languages_alone_and_others_are_kept():
    asked = []

    def score(documents):
        asked.extend(document["id"] for document in documents)
        return [{"safety.level": 5.0} for _ in documents]

    texts = {"a": ARABIC, "e": ENGLISH, "b": ARABIC}
    documents = [{"id": id, "text": text, "source": "s", "metadata": {}} for id, text in texts.items()]
    scores = filter_tools.in_languages(score, "safety", "en, fr")(documents)
    assert asked == ["e"]
    outcomes = pipeline.align(documents, scores, pipeline.Aligning(score="safety.level"))
    assert [outcome.decision["action"] for outcome in outcomes] == ["keep", "drop", "keep"]
    assert [outcome.decision["reason"] for outcome in outcomes] == ["not_scored", "unsafe", "not_scored"]


def test_a_text_with_tags_addresses_and_entities_is_no_code():
    text = "RT @USER: this is what I said to you about the game &amp; more of it http://example.org/a #sports #win 100%"
    assert language.identify([text])[0][0] == "en"


def test_a_word_where_a_rule_takes_a_number_is_refused():
    with pytest.raises(InputError, match=r"rules\.c4\.min_sentences='many' is not a number"):
        filter_settings.check_knobs("c4", {"min_sentences": "many"})
    filter_settings.check_knobs("c4", {"min_sentences": 2})
    filter_settings.check_knobs("fineweb", {"min_punctuated_lines": None})


def test_an_unset_knob_is_left_to_the_pack_and_a_check_is_switched_off_by_a_word():
    c = experiment.get_config("tiny")
    c.rules.fineweb.min_punctuated_lines = "off"
    assert filter_settings.of(c)["screen"]["rules"] == {
        "c4": {"terminal_punctuation": False},
        "fineweb": {"min_punctuated_lines": None},
    }
    c.rules.fineweb.min_punctuated_lines = "default"
    with pytest.raises(InputError, match=r"rules\.fineweb\.min_punctuated_lines='default': leave it out"):
        filter_settings.of(c)


def test_what_may_be_unset_takes_none_on_the_command_line():
    c = experiment.get_config().lock()
    values = {
        "workers": 3,
        "rules.c4.min_sentences": 2,
        "rules.c4.terminal_punctuation": True,
        "scorers.safety.min_score": 0.5,
    }
    config.parse_flags(
        c, [f"--config.{name}=None" for name in ("workers", "scorers.safety.min_score", "rules.c4.policy")]
    )
    assert c.workers is None and c.scorers.safety.min_score is None and c.rules.c4.policy is None
    config.parse_flags(c, [f"--config.{name}={value}" for name, value in values.items()])
    assert (c.workers, c.rules.c4.min_sentences, c.rules.c4.terminal_punctuation) == (3, 2, True)
    assert c.scorers.safety.min_score == 0.5
    with pytest.raises(InputError, match="seed=None"):
        config.parse_flags(c, ["--config.seed=None"])


def test_stages_of_one_hash_are_one_to_a_cache_whatever_their_paths():
    first, second = (filter_settings.Stage("screen", "abc", {"path": path}) for path in ("a", "b"))
    assert first == second and hash(first) == hash(second)
    assert first != filter_settings.Stage("screen", "abd", {"path": "a"})


def test_a_hash_covers_the_content_of_files_and_not_their_paths(tmp_path):
    def hashes(name, content):
        (tmp_path / name).write_text(content)
        c = experiment.get_config("tiny")
        c.scorers.safety.path = c.rewriter.model = str(tmp_path / name)
        return filter_settings.hashes(filter_settings.of(c), [])

    first = hashes("a.json", '{"1": ["x"]}')
    (tmp_path / "other").mkdir()
    assert hashes("other/a.json", '{"1": ["x"]}') == first
    changed = hashes("a.json", '{"1": ["y"]}')
    assert {stage for stage in first if first[stage] != changed[stage]} == {
        "score.safety",
        "fallen",
        "stand_in",
        "align",
    }


def test_the_report_says_what_a_scorer_of_two_levels_cannot_do(tmp_path):
    (tmp_path / "scorer.json").write_text('{"levels": ["mild", "unsafe"]}', "utf-8")
    safety = {"path": str(tmp_path), "languages": "en"}
    align = {"safety": safety, "score": "safety.level", "router": {"drop_at": 4}}
    total = {"keep/not_scored": (7, 0), "keep/unchanged": (3, 0), "keep/safety": (2, 0), "keep": (40, 0)}
    lines = " ".join(filter_page.about_scores(align, total))
    assert "7 documents are not in the scorer's languages (en)" in lines
    assert "levels 0 to 1" in lines and "none is dropped" in lines
    assert "5 documents were sent to the rewriter and stay" in lines and "3 came back unchanged" in lines


def test_languages_are_told_apart_where_the_chain_asks_or_packs_must_be_chosen():
    texts = [ENGLISH, ENGLISH]
    texts += ["Der schnelle braune Fuchs springt über den faulen Hund und die Katze, die mit ihm im Haus war."]
    documents = [{"id": str(i), "text": text, "source": "s", "metadata": {}} for i, text in enumerate(texts)]

    def kept(**changes):
        c = experiment.get_config()
        c.skip = ("safety",)
        c.update(changes)
        tools = filter_tools.make_screening(filter_settings.of(c)["screen"])
        return [verdict.reason == "" for verdict in pipeline.screen(documents, tools)]

    assert kept(chain=("mojibake",), packs=("en",)) == [True, True, True]
    assert kept(chain=("mojibake",), packs=("en", "ar")) == [True, True, False]
    assert kept(chain=("language", "mojibake"), packs=("en",)) == [True, True, False]
