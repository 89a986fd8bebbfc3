import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data.texts import preferences, splits, text
from data.texts.pair_formats import Comparison


@pytest.mark.parametrize("changes", [{"heldout_split": "test"}, {"split": "test"}])
def test_the_name_of_a_split_is_refused_where_files_have_none_and_would_be_held_out_whole(tmp_path, changes):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    for check_fn, more in ((preferences.check, {}), (text.check, {"max_len": 8})):
        with pytest.raises(InputError, match=f"{next(iter(changes))}='test' is not read, since"):
            check_fn(path=str(tmp_path / "a.jsonl"), **more, **changes)
    splits.check("tfds:mnist", split="train", heldout_split="test")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "A ", "b", "c\n", " C", "ｃ", "d", "e", "f", "g", "h"]), min_size=2, max_size=40))
def test_no_prompt_is_on_both_sides_of_the_split(prompts):
    items = [Comparison(p, ("x", "y")) for p in prompts]
    train, heldout = splits.by_prompt(items, fraction=0.4, seed=1)
    fold = lambda items: {"".join(i.prompt.split()).lower().replace("ｃ", "c") for i in items}  # noqa: E731
    assert not fold(train) & fold(heldout)
    assert len(train) + len(heldout) == len(prompts) and train
    assert heldout or len(fold(items)) == 1


def test_a_dialogue_and_its_continuation_are_on_the_same_side():
    turns = [{"role": r, "content": f"{r} says something"} for r in ("user", "assistant", "user", "assistant", "user")]
    dialogues = [[turns[0] | {"content": f"is {i} an odd number?"}, *turns[1:]] for i in range(40)]
    items = [Comparison(d[:k], ("x", "y")) for k in (5, 1, 3) for d in dialogues]
    for half in splits.by_prompt(items, fraction=0.3):
        assert half and all(sum(i.prompt[0] == item.prompt[0] for i in half) == 3 for item in half)


def test_openings_are_whole_words_of_some_length_and_not_an_instruction_before_everything():
    opening = "Tell me about the cat"
    openings = splits._openings({p.lower() for p in (opening, f"{opening} on it", f"{opening}s on it", "Tell me")})
    assert openings == {
        "tell me": "tell me",  # too short
        opening.lower(): opening.lower(),
        f"{opening.lower()} on it": opening.lower(),
        f"{opening.lower()}s on it": f"{opening.lower()}s on it",
    }
    prompts = {"below is an instruction:", *(f"below is an instruction: do {i}" for i in range(99))}
    assert splits._openings(prompts) == {p: p for p in prompts}
    prompts |= {f"question {i}" for i in range(1000)}
    assert len(set(splits._openings(prompts).values())) == 1001  # under a tenth of all is a group


def test_documents_that_continue_one_another_are_split_by_themselves():
    docs = ["word " * n for n in range(5, 400)]
    items = [Comparison("", (d,), group=d) for d in docs]
    train, heldout = splits.by_prompt(items, fraction=0.3)
    assert 60 < len(heldout) < 180 and len(train) + len(heldout) == len(docs)


def test_split_fraction_is_about_right_and_moves_with_the_seed():
    items = [Comparison(f"q {i}", ("x", "y")) for i in range(2000)]
    first, second = (splits.by_prompt(items, fraction=0.1, seed=s)[1] for s in (0, 1))
    assert 150 < len(first) < 250 and {i.prompt for i in first} != {i.prompt for i in second}
    assert splits.by_prompt(items, fraction=0.1)[1] == splits.by_prompt(items[::-1], fraction=0.1)[1][::-1]
