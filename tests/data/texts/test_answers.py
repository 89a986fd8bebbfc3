import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data.texts import answers
from data.texts.pair_formats import Comparison
from data.tokens import tokenizer

BYTES = tokenizer.load("bytes")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def merging_tokenizer(tmp_path, *, template=CHATML, bos=True):
    """Letters, and the merges 'ab', ': ' and 'ef', so that prompts ending in a, ':' or 'e' can fuse with an answer."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz :?\n<|>_/"))
    vocab = {c: i for i, c in enumerate([*letters, "ab", ": ", "ef"])}
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("a", "b"), (":", " "), ("e", "f")]))
    tok.decoder = tokenizers.decoders.Fuse()
    tok.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    if bos:
        i = tok.token_to_id("<s>")
        tok.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", i)])
    tok.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(template)
    return tokenizer.load(str(tmp_path))


def one(tok, prompt, answer, **options):
    return answers.encode(tok, [Comparison(prompt, (answer,), **options)], [answer])[0]


def parts(tok, a):
    return [tok.decode(ids, skip_special=False) for ids in (a.ids[: a.prompt_len], a.ids[a.prompt_len :])]


@settings(max_examples=60, deadline=None)
@given(*(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) for _ in range(2)))
def test_bytes_split_exactly_at_the_boundary(prompt, answer):
    a = one(BYTES, prompt, answer)
    if not set("<|") & set(prompt + answer):
        assert parts(BYTES, a) == ["<|bos|>" + prompt, answer + "<|eos|>"] and not a.is_merged


def test_a_token_across_the_boundary_is_read_and_not_learned(tmp_path):
    tok = merging_tokenizer(tmp_path)
    whole = one(tok, "q: a", "bc")
    assert parts(tok, whole) == ["<s>q: ab", "c</s>"] and whole.is_merged
    apart = one(tok, "q: a", "cb")
    assert parts(tok, apart) == ["<s>q: a", "cb</s>"] and not apart.is_merged


def test_bos_stands_once_in_front(tmp_path):
    tok = merging_tokenizer(tmp_path)
    for prompt in ("q", "<s>q"):
        assert (one(tok, prompt, "x").ids == tok.bos_id).tolist() == [True, False, False, False][
            : len(one(tok, prompt, "x").ids)
        ]
    chat = one(BYTES, [{"role": "user", "content": "q"}], "x")  # the template writes it
    assert (chat.ids == BYTES.bos_id).sum() == 1 and chat.ids[0] == BYTES.bos_id
    (tmp_path / "no").mkdir()
    without = merging_tokenizer(tmp_path / "no", bos=False)
    assert without.bos_id not in one(without, "q", "x").ids


def test_a_template_ends_the_answer_with_its_own_mark_and_nothing_after(tmp_path):
    tok = merging_tokenizer(tmp_path)
    a = one(tok, [{"role": "user", "content": "q"}], "x")
    assert parts(tok, a) == ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "x<|im_end|>"]
    assert a.ids[-1] in tok.stop_ids
    assert (a.ids == tok.eos_id).sum() == 0


def test_a_template_without_a_mark_gets_eos(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tok = merging_tokenizer(tmp_path, template=template)
    a = one(tok, [{"role": "user", "content": "q"}], "x")
    assert parts(tok, a) == ["user: q\nassistant: ", "x\n</s>"]


def test_chat_modes_choose_who_writes_the_prompt(tmp_path):
    tok = merging_tokenizer(tmp_path)
    text = Comparison("q", ("x",))
    question = Comparison("q", ("x",), is_chat=True)
    messages = Comparison([{"role": "user", "content": "q"}], ("x",))
    rendered = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nx<|im_end|>"
    assert [answers.texts(tok, i, "x", "auto")[0] for i in (text, question, messages)] == ["qx", rendered, rendered]
    assert [answers.texts(tok, i, "x", "always")[0] for i in (text, question, messages)] == [rendered] * 3
    plain = "<s>User: q\n\nAssistant: x</s>"
    assert [answers.texts(tok, i, "x", "never")[0] for i in (text, question, messages)] == ["qx", "qx", plain]
    with pytest.raises(InputError, match=r"data\.chat='no'"):
        answers.encode(tok, [text], ["x"], mode="no")


def test_a_template_that_rewrites_the_prompt_names_the_record(tmp_path):
    tok = merging_tokenizer(
        tmp_path, template="{{ messages | length }}{{ messages[0].content }}{{ messages[-1].content }}"
    )
    item = Comparison([{"role": "user", "content": "q"}], ("x",), file="f.jsonl", line=7)
    (bad,) = answers.encode(tok, [item], ["x"])
    assert (bad.file, bad.line) == ("f.jsonl", 7) and "rewrites earlier text" in bad.reason


def made(prompt_len, answer_len, *, bos=99, side=0):
    ids = np.r_[bos, np.arange(1, prompt_len), 50 + side * 20 + np.arange(answer_len - 1), 7].astype(np.int32)
    return answers.Answered(ids, prompt_len, False)


def fit(group, counts=None, **limits):
    options = {"max_len": None, "max_prompt_len": None, "truncation": "keep_end"} | limits
    tally = (counts if counts is not None else []).append
    return answers.fit(group, bos_id=99, where="f:1", count=tally, **options)


def test_what_fits_is_left_alone():
    group = (made(6, 4), made(6, 3, side=1))
    assert fit(group) == group and fit(group, max_len=10) == group


def test_keep_end_cuts_the_prompt_from_the_left_behind_bos():
    counts = []
    chosen, rejected = fit((made(8, 4), made(8, 3, side=1)), counts, max_len=10)
    assert chosen.ids.tolist() == [99, 3, 4, 5, 6, 7, 50, 51, 52, 7] and chosen.prompt_len == rejected.prompt_len == 6
    assert rejected.ids.tolist() == [99, 3, 4, 5, 6, 7, 70, 71, 7] and counts == ["prompts cut"]
    assert not chosen.is_cut


def test_keep_start_cuts_the_prompt_from_the_right():
    chosen, _ = fit((made(8, 4), made(8, 3, side=1)), max_len=10, truncation="keep_start")
    assert chosen.ids.tolist() == [99, 1, 2, 3, 4, 5, 50, 51, 52, 7]


def test_a_cut_answer_has_no_end_of_turn_and_the_prompt_keeps_half():
    counts = []
    chosen, rejected = fit((made(8, 9), made(8, 2, side=1)), counts, max_len=10)
    assert chosen.ids.tolist() == [99, 4, 5, 6, 7, 50, 51, 52, 53, 54] and chosen.is_cut
    assert rejected.ids[-1] == 7 and not rejected.is_cut and counts == ["prompts cut", "answers cut"]


def test_the_prompts_own_limit_holds_even_where_the_whole_would_fit():
    chosen, _ = fit((made(8, 2), made(8, 2, side=1)), max_prompt_len=3)
    assert chosen.ids.tolist() == [99, 6, 7, 50, 7]


def test_drop_and_error_do_not_cut():
    counts = []
    assert fit((made(8, 4), made(8, 3)), counts, max_len=10, truncation="drop") is None
    assert counts == ["longer than the limit, dropped"]
    with pytest.raises(InputError, match=r"f:1: prompt 8 and answer 4 tokens.*max_len=10"):
        fit((made(8, 4), made(8, 3)), max_len=10, truncation="error")


def test_answers_alike_after_cutting_and_answers_without_tokens_are_dropped():
    counts = []
    a, b = made(4, 8), made(4, 9)
    assert fit((a, b), counts, max_len=8) is None and counts[-1] == "identical answers after cutting"
    empty = answers.Answered(np.arange(4, dtype=np.int32), 4, True)
    assert fit((empty, b), counts) is None and counts[-1] == "answer without a token of its own"


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(2, 40),
    st.one_of(st.none(), st.integers(1, 30)),
)
def test_cut_pairs_fit_share_their_prompt_and_keep_an_answer(
    prompt_len, chosen_len, rejected_len, max_len, max_prompt_len
):
    group = (made(prompt_len, chosen_len), made(prompt_len, rejected_len, side=1))
    for truncation in ("keep_end", "keep_start"):
        pair = fit(group, max_len=max_len, max_prompt_len=max_prompt_len, truncation=truncation)
        if pair is None:
            continue
        for before, after in zip(group, pair):
            assert len(after.ids) <= max_len and after.answer_len >= 1 and after.prompt_len >= 1
            assert after.prompt_len <= (max_prompt_len or prompt_len)
            assert after.is_cut == (after.answer_len < before.answer_len)
            assert after.ids[after.prompt_len :].tolist() == before.ids[prompt_len:][: after.answer_len].tolist()
        assert pair[0].ids[: pair[0].prompt_len].tolist() == pair[1].ids[: pair[1].prompt_len].tolist()
