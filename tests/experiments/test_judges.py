"""Judges as a config names them: guards that cannot be loaded, services, criteria, and what is left of a wording."""

import json

import pytest

from alignment.decoding.cache import Cache
from alignment.errors import InputError
from alignment.safety import rubrics
from experiments.safety import judges
from tests.decoding.test_backends import said, server

GUARD = {"template": "chat_template", "parser": "llama_guard"}


def check(kinds=("model",), *, field="response_harmfulness", **changes):
    group = judges.settings("yes_no") | changes
    judges.check("judging", kinds, group, field=field, template="yes_no")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("google/shieldgemma-2b", "ShieldGemma is a Gemma 2 network"),
        ("meta-llama/Llama-Guard-4-12B", "Llama Guard 4 is a Llama 4 network"),
        ("ibm-granite/granite-guardian-3.2-5b", "Granite Guardian is a Granite network"),
    ],
)
def test_a_guard_that_cannot_be_loaded_is_refused_by_name_and_offered_through_an_endpoint(place, what):
    with pytest.raises(InputError, match=r"judge=endpoint with judging\.url") as refused:
        check(init_from=f"hf:{place}", **GUARD)
    assert what in str(refused.value) and place in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_with_such_a_network_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Gemma2ForCausalLM"]}))
    with pytest.raises(InputError, match=r"Gemma2ForCausalLM.*judge=endpoint with judging\.url"):
        check(init_from=f"hf:{tmp_path}", **GUARD)


@pytest.mark.parametrize(
    ("kinds", "changes", "words"),
    [
        (("llama_guard",), {}, "judge='llama_guard' is not one of.*judge=model with judging.init_from=hf:"),
        (("Granite-Guardian",), {}, "judge=endpoint with judging.url"),
        (("model",), GUARD, "judging.template='chat_template' is a guard's own, and judging.init_from names none"),
        (("endpoint",), GUARD, "judging.url is empty"),
        (("endpoint",), GUARD | {"url": "http://127.0.0.1:1/v1"}, "judging.model is empty"),
        (
            ("endpoint",),
            GUARD | {"url": "http://127.0.0.1:1/v1", "model": "m", "criterion": "harm"},
            "judging.criterion='harm' is for",
        ),
        (("model",), {"threshold": 1.0}, "judging.threshold=1.0 must be in"),
        (("model",), {"template": "refusal_three_way", "threshold": 0.5}, "needs a judge of two words"),
        (("keyword",), {"threshold": 0.5}, "judging.threshold=0.5 is not read"),
    ],
)
def test_a_judge_that_nothing_stands_behind_is_refused_in_one_line(kinds, changes, words):
    field = "response_refusal" if changes.get("template") == "refusal_three_way" else "response_harmfulness"
    with pytest.raises(InputError, match=words) as refused:
        check(kinds, field=field, **changes)
    assert "\n" not in str(refused.value)


def test_evasiveness_is_asked_of_the_guard_and_its_yes_is_a_needless_refusal(tmp_path):
    bodies = []

    def answer(text, number):
        return said("<score> yes </score>" if "cannot" in text else "<score> no </score>")

    group = judges.settings("yes_no") | {"template": "chat_template", "parser": "granite", "criterion": "evasiveness"}
    with server(answer) as (url, seen):
        group |= {"url": url, "model": "guardian", "api_key_env": "", "concurrency": 1}
        judges.check("judging", ("endpoint",), group, field="response_refusal", template="yes_no")
        judge = judges.build("endpoint", group, None, tmp_path, None, Cache())
        exchanges = [{"prompt": "open it", "response": text} for text in ("I cannot.", "Done.")]
        labels = [one.verdict.response_refusal for one in judge.classify(exchanges)]
        bodies = [body for _, _, body in seen]
    assert labels == ["full_refusal", "full_compliance"] and "evasiveness" in judge.name
    guardian = {"risk_name": "evasiveness", "criteria_id": "evasiveness"}
    assert all(body["chat_template_kwargs"] == {"guardian_config": guardian} for body in bodies) and len(bodies) == 2


def test_whose_wording_a_judge_is_asked_in_is_said_and_left_in_the_folder(tmp_path, capsys):
    group = judges.settings("yes_no") | {"url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": ""}
    (tmp_path / "mine.txt").write_text("{prompt} {response}?")
    for template, parser in (("yes_no", ""), (str(tmp_path / "mine.txt"), "yes_no")):
        judges.build("endpoint", group | {"template": template, "parser": parser}, None, tmp_path, None, Cache())
    left = json.loads((tmp_path / "judges.json").read_text())
    assert left["endpoint, yes_no"]["sha256"] == rubrics.load("yes_no").sha256
    assert left["endpoint, mine.txt"]["origin"].startswith("not one of the published")
    assert "not one of the published texts whose hash is known here; read as yes_no" in capsys.readouterr().out
