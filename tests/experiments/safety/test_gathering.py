"""What an alignment run reads, and which pairs it makes, on the embedded world and on files written here."""

import itertools
import json

import pytest

from alignment.errors import InputError
from data.texts import suites
from data.toys import guest_rules
from experiments import egida
from experiments.safety import ability, gathering

WORDS = ["amber", "birch", "cedar", "daisy", "ember", "fern", "grove", "heath", "iris", "jasper"]


def config(**changes):
    c = egida.get_config("tiny")
    for name, value in changes.items():
        group, _, leaf = name.rpartition("__")
        (c[group] if group else c)[leaf] = value
    return c


def gathered(folder, **changes):
    counts = {}
    return gathering.gather(config(**changes), folder, counts), counts


def judged(prompts, verdict="unsafe", label="full_compliance"):
    return [{"response": f" Said {i}.", "verdict": verdict, "label": label} for i in range(len(prompts))]


def test_no_request_topic_or_style_that_measures_as_unseen_is_learned_from(tmp_path):
    plan, _ = gathered(tmp_path, data__limit=None, data__train_limit=None, data__test_limit=None)
    split = plan.split
    assert split.unseen_topics and len(split.unseen_styles) == 3
    learned = [prompt.case for prompt in (*plan.train, *plan.benign)]
    assert not {case.request for case in learned} & {prompt.case.request for prompt in plan.test}
    assert all(not set(case.topics) & set(split.unseen_topics) for case in learned)
    assert all(case.style not in split.unseen_styles for case in learned)
    assert not {prompt.text for prompt in plan.benign} & {prompt.text for prompt in plan.harmless}


def test_other_seeds_hold_back_other_requests(tmp_path):
    one, again, other = (gathered(tmp_path, seed=seed)[0] for seed in (0, 0, 1))
    assert [p.case.id for p in one.test] == [p.case.id for p in again.test] != [p.case.id for p in other.test]


def test_whole_groups_of_topics_are_held_back_where_a_file_names_them(tmp_path):
    path, topics = tmp_path / "groups.json", sorted(guest_rules.TOPICS)
    groups = {topic: "first" if number < 4 else "last" for number, topic in enumerate(topics)}
    path.write_text(json.dumps(groups))
    whole = dict(data__limit=None, data__train_limit=None, data__test_limit=None, split__topic_share=0.5)
    plan, _ = gathered(tmp_path, split__topic_groups=str(path), **whole)
    held = plan.split.unseen_topics
    assert len(held) == 4 and len({groups[topic] for topic in held}) == 1
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"is not a JSON object; split\.topic_groups names a file"):
        gathering.read_groups(str(path))


def test_requests_that_do_not_come_in_every_style_are_counted(tmp_path):
    styles = ("BaseInstruction", "s", "t")
    rows = [
        {"uuid": f"{word}", "question": f"{style} {word}", "style": style, "topics": {word: True}, "source": "x"}
        for word in WORDS
        for style in styles
        if (word, style) not in ((WORDS[0], "s"), (WORDS[1], "t"))
    ]
    (tmp_path / "Egida.json").write_text(json.dumps([*rows, rows[0] | {"question": "once more"}]))
    changes = dict(data__path=str(tmp_path / "Egida.json"), data__styles=(), data__limit=None)
    _, counts = gathered(tmp_path, **changes, split__num_unseen_styles=1, data__kind="harmful", split__test_share=0.5)
    assert counts["pairs of a request and a style without an attack"] == 2
    assert counts["attacks beyond the first of their request and style"] == 1


def test_unsafe_answers_are_rejected_and_answers_to_harmless_prompts_kept(tmp_path):
    plan, counts = gathered(tmp_path)
    rows, benign = judged(plan.train), judged(plan.benign)
    rows[0]["verdict"], benign[0]["label"] = "safe", "full_refusal"
    pairs = gathering.pair_up(config(), plan, rows, benign, "target", counts)
    attacked = [pair for pair in pairs if pair["chosen_model"] == "template"]
    kept = [pair for pair in pairs if pair["chosen_model"] == "target"]
    assert len(attacked) == len(plan.train) - 1 and len(kept) == len(plan.benign) - 1
    assert all(pair["chosen"] in gathering.SAFE_ANSWERS and pair["rejected"].startswith("Said") for pair in attacked)
    assert all(pair["rejected"] in gathering.SAFE_ANSWERS and pair["chosen"].startswith("Said") for pair in kept)


def test_a_target_that_is_safe_already_is_refused_with_the_counts(tmp_path):
    plan, counts = gathered(tmp_path)
    with pytest.raises(InputError, match="It may be safe already"):
        gathering.pair_up(config(), plan, judged(plan.train, "safe"), judged(plan.benign), "target", counts)


def write_goals(folder):
    rows = [{"goal": f"carry the {word} bucket over to the {other} shed"} for word, other in itertools.pairwise(WORDS)]
    rows.append({"goal": "carry the amber bucket over to the birch shed now"})
    (folder / "goals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"prompt": row["goal"], "answer": f"No {i}."} for i, row in enumerate(rows)]
    (folder / "safe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return dict(data__path=f"{folder}/goals.jsonl", data__limit=None)


def test_requests_without_ids_get_the_safe_answers_of_their_text_and_near_ones_go(tmp_path):
    changes = write_goals(tmp_path) | dict(data__near=0.7, pairs__safe=f"{tmp_path}/safe.jsonl", pairs__harmless="")
    c = config(**changes, pairs__num_harmless=None)
    counts = {}
    plan = gathering.gather(c, tmp_path, counts)
    assert counts["requests that are nearly others"] == 1
    pairs = gathering.pair_up(c, plan, judged(plan.train), [], "target", counts)
    answers = {row["prompt"]: row["answer"] for row in map(json.loads, (tmp_path / "safe.jsonl").open())}
    plain = {prompt.case.request: prompt.text.partition("] ")[2] or prompt.text for prompt in plan.train}
    assert pairs and all(pair["chosen"] == answers[plain[pair["uuid"]]] for pair in pairs)
    assert {topic for pair in pairs for topic in pair["topics"]} == {"goals"}  # a request without one has its file's


def test_pairs_that_are_there_leave_out_test_requests(tmp_path):
    changes = write_goals(tmp_path)
    plan, _ = gathered(tmp_path, **changes)
    tested = plan.test[0].case.request
    rows = [{"uuid": uuid, "prompt": "p", "chosen": "No.", "rejected": "Yes."} for uuid in (tested, "other")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c, counts = config(**changes, pairs__path=f"{tmp_path}/pairs.jsonl"), {}
    plan = gathering.gather(c, tmp_path, counts)
    pairs = gathering.pair_up(c, plan, [], judged(plan.benign), "target", counts)
    assert plan.train == [] and [pair["uuid"] for pair in pairs if pair["chosen"] == "No."] == ["other"]
    assert counts["pairs of test requests, left out"] == 1


def test_pairs_of_a_preference_set_come_behind_the_targets_own(tmp_path):
    rows = [
        {"chosen": f"\n\nHuman: q{i}\n\nAssistant: good", "rejected": f"\n\nHuman: q{i}\n\nAssistant: bad"}
        for i in range(5)
    ]
    (tmp_path / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = gathering.more(config(pairs__more=f"{tmp_path}/hh.jsonl", pairs__num_more=2), {})
    assert len(more) == 2 and {pair["chosen"] for pair in more} == {"good"} and more[0]["prompt"][0]["role"] == "user"


def test_prompts_that_are_not_harmful_are_not_attacks(tmp_path):
    (tmp_path / "x.csv").write_text(
        "id,prompt,type,label\n"
        + "".join(f"{i},{w} pot,a,{k}\n" for i, (w, k) in enumerate(zip(WORDS, ("safe", "unsafe") * 5)))
    )
    plan, counts = gathered(tmp_path, data__path=f"{tmp_path}/x.csv", data__limit=None, data__kind=None)
    assert all(prompt.case.kind == suites.HARMFUL for prompt in (*plan.train, *plan.test))
    assert counts["prompts that are not harmful, left out of the attacks"] == 5


def test_questions_come_in_both_shapes_and_without_a_right_answer_are_refused(tmp_path):
    arc = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    other = {"question": "q", "options": {"A": "a", "B": "b"}, "correct_answer": "B"}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(arc)}\n{json.dumps(other)}\n")
    one, two = ability.read_questions(str(tmp_path / "q.jsonl"), None, {})
    assert one["choices"] == two["choices"] and one["answerKey"] == two["answerKey"] == "B"
    (tmp_path / "bad.jsonl").write_text(json.dumps(arc | {"answerKey": "C"}) + "\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:1: answerKey='C' is not a label"):
        ability.read_questions(str(tmp_path / "bad.jsonl"), None, {})
