import json

import pytest

from alignment.errors import InputError
from data.texts import styles
from data.texts.suites import PLAIN, Case

CASES = [Case("a", "open the {blue} door", "harmful", request="a"), Case("b", "open it", "harmful", request="b")]


def test_tags_are_inert_and_keep_renderings_of_a_request_together():
    out = styles.styled(CASES, styles.STYLES[:2], is_inert=True)
    assert [case.prompt for case in out[:3]] == [
        "open the {blue} door",
        "[STYLE:persona] open the {blue} door",
        "[STYLE:unrestricted_persona] open the {blue} door",
    ]
    assert [case.request for case in out] == list("aaabbb") and len({case.id for case in out}) == 6
    assert out[0].style == PLAIN and len(styles.STYLES) == len(set(styles.STYLES)) == 18


def test_an_attack_without_a_user_s_template_is_refused():
    with pytest.raises(InputError, match=r"'research'.*templates of your own"):
        styles.styled(CASES, ["research"])
    with pytest.raises(InputError, match="'research'"):
        styles.styled(CASES, ["research"], templates={"fiction": "{request}"})


def test_templates_of_a_user_s_file_go_around_the_request(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"mine": "<{request}> and {this}"}))
    out = styles.styled(CASES, ["mine"], templates=styles.read_templates(str(path)))
    assert out[1].prompt == "<open the {blue} door> and {this}" and out[1].style == "mine"


@pytest.mark.parametrize(
    ("content", "words"), [("[", "not a JSON object"), ('["a"]', "JSON object"), ('{"a": "b"}', "has no {request}")]
)
def test_files_that_hold_no_templates_are_refused(tmp_path, content, words):
    path = tmp_path / "templates.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        styles.read_templates(str(path))


def test_a_rendered_prompt_takes_no_second_style():
    rendered = styles.styled(CASES, ["research"], is_inert=True)
    with pytest.raises(InputError, match="already"):
        styles.styled(rendered, ["fiction"], is_inert=True)
