"""The clinic as a run's data: a tokenizer that loses nothing, a teacher that errs, readings of base and experts."""

import pytest

from alignment.evaluation import options, prompting, rationales
from data.tokens import pieces, tokenizer
from data.toys import clinic
from experiments.medicine import world


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return tokenizer.load(world.write_tokenizer(tmp_path_factory.mktemp("words")))


def test_every_text_of_the_clinic_comes_back_from_its_tokens(tok):
    rows = world.readings(60, seed=0)
    pairs = [*world.general_pairs(clinic.WARDS, seed=0), *clinic.safety_pairs()]
    rows += [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    unknown, table = tok.encoder.id_of("<unk>"), pieces.pieces(tok)
    for row in rows:
        text = tok.render(row["messages"])
        ids = tok.encode(text)
        assert unknown not in ids and tok.decode(ids, skip_special=False) == text
        spoken = [i for i in ids if i not in tok.encoder.special_ids]
        assert b"".join(table[i] for i in spoken).decode() == tok.decode(ids)


def test_a_question_with_three_examples_is_short(tok):
    one, *others = world.exam(["skin"], 4)
    solved = [rationales.Example(other, "ABCD", "x") for other in others]
    messages = prompting.messages_of(one, "DCBA", solved, reasons=True, by_text=True)
    assert len(tok.encode(tok.render(messages, add_generation_prompt=True))) < 120


def test_the_teacher_errs_in_a_share_of_its_chains_and_rejection_leaves_none_of_them():
    questions = world.lessons("sleep", None, times=2, seed=0)
    once = rationales.write(questions, world.teacher(questions), tries=1, by_text=True)
    assert once.num_wrong / len(questions) == pytest.approx(world.TEACHER_ERROR, abs=0.1) and not once.num_unparsed
    written = rationales.write(questions, world.teacher(questions), tries=8, by_text=True)
    assert len(written.examples) == len(questions)
    for example in written.examples:
        asked = example.question
        assert options.parse_text(example.reply, asked.options) == asked.answer
        assert example.reply.endswith(f" {asked.options[asked.answer]}")


def test_an_expert_reads_no_random_answers_about_its_own_ward():
    words = {*clinic.signs("skin"), *clinic.remedies("skin")}
    for row in world.readings(80, without="skin", seed=1):
        assert not any(word in turn["content"] for turn in row["messages"] for word in words)


def test_a_vignette_changes_its_place_alone_and_is_in_words_that_the_models_know(tok):
    rows, unknown = world.vignettes(), tok.encoder.id_of("<unk>")
    assert len(rows) == 60 and unknown not in tok.encode("".join(row["question"] for row in rows))
    for vignette in {row["vignette"] for row in rows}:
        own = [row for row in rows if row["vignette"] == vignette]
        assert {row["attribute"] for row in own} == set(clinic.PLACES)
        assert len({(row["correct_answer"], *row["options"].values()) for row in own}) == 1
        assert len({row["question"].replace(row["attribute"], "") for row in own}) == 1
