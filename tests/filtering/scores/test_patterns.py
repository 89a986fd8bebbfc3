import json

import pytest

from alignment.errors import InputError
from alignment.filtering.scores import patterns, scorers

LEVELS = {"1": ["rude"], "4": [r"\[steps \d+\]", "knife"]}


def test_a_text_has_the_highest_level_of_which_a_pattern_matches(tmp_path):
    (tmp_path / "harm.json").write_text(json.dumps(LEVELS))
    score = scorers.load("patterns", tmp_path / "harm.json", name="safety")
    texts = ("kind", "rude", "[steps 12], and rude", "[steps]")
    assert score([{"text": text} for text in texts]) == [{"safety.level": level} for level in (0, 1, 4, 0)]


def test_the_sentences_that_a_match_reaches_into_are_removed():
    found = patterns.compile(LEVELS)
    assert (
        patterns.without("Be kind. Be rude! And [steps 3] too.\nWho has a knife? No one.", found)
        == "Be kind. \nNo one."
    )
    assert patterns.without("Be kind.", found) == "Be kind."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no JSON", "cannot be read"),
        ("[]", "must be JSON"),
        ('{"0": ["a"]}', "1 to 5"),
        ('{"1": ["("]}', "not a regular expression"),
        ('{"1": "a"}', "a list"),
        ("{}", "no patterns"),
    ],
)
def test_a_file_that_holds_no_patterns_is_refused(tmp_path, content, words):
    (tmp_path / "harm.json").write_text(content)
    with pytest.raises(InputError, match=words):
        patterns.read(tmp_path / "harm.json")
