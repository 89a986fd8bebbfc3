import gzip
import json
import lzma

import ml_collections
import pytest
import zstandard

from alignment.errors import InputError
from data.tokens import tokenizer
from experiments.decoding import options, prompts

TOK = tokenizer.load("bytes")
BASE = options.of_run(ml_collections.ConfigDict(options.settings() | {"max_new_tokens": 8}))


def load(path, **changes):
    known = dict(vocab_size=264, max_len=64, is_chat=False)
    return prompts.load(str(path), TOK, BASE, **known | changes)


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_plain_prompt_is_its_text_behind_bos_and_messages_go_through_the_template(tmp_path):
    turns = [{"role": "user", "content": "Hi?"}]
    path = jsonl(tmp_path / "p.jsonl", {"id": "a", "prompt": "Once"}, {"id": "b", "messages": turns})
    (plain, chat), bad = load(path)
    assert bad == []
    assert TOK.decode(plain.ids, skip_special=False) == "<|bos|>Once" and not plain.is_chat
    assert TOK.decode(chat.ids, skip_special=False) == "<|bos|>User: Hi?\n\nAssistant:" and chat.is_chat
    assert (plain.id, plain.shown, chat.id, chat.shown) == ("a", "Once", "b", turns)


def test_chat_puts_prompts_as_a_users_turn_behind_the_system_prompt(tmp_path):
    rows = {"prompt": "Hi?"}, {"prompt": "Hi?", "system": "Own."}
    (first, second), _ = load(jsonl(tmp_path / "p.jsonl", *rows), is_chat=True, system="Be brief.")
    assert TOK.decode(first.ids) == "System: Be brief.\n\nUser: Hi?\n\nAssistant:"
    assert TOK.decode(second.ids) == "System: Own.\n\nUser: Hi?\n\nAssistant:"


def test_a_system_prompt_that_nothing_reads_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no prompt goes through a chat template; set --config.chat=True"):
        load(jsonl(tmp_path / "p.jsonl", {"prompt": "Hi?"}), system="Be brief.")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "txt", "txt.gz", "txt.xz", "txt.zstd", "parquet"])
def test_prompts_come_from_every_kind_of_file_in_their_order(tmp_path, suffix):
    texts = ["one, two", "مرحبا", "three"]
    path = tmp_path / f"p.{suffix}"
    rows = [{"prompt": text} for text in texts]
    if suffix == "csv":
        path.write_text('prompt\n"one, two"\nمرحبا\nthree\n', encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "txt":
        path.write_bytes("\ufeffone, two\r\n\nمرحبا\nthree".encode())
    elif suffix.startswith("txt."):
        pack_fn = {"gz": gzip.compress, "xz": lzma.compress, "zstd": zstandard.compress}[suffix[4:]]
        path.write_bytes(pack_fn("\n".join(texts).encode()))
    elif suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        jsonl(path, *rows)
    loaded, bad = load(path)
    assert [prompt.shown for prompt in loaded] == texts and [prompt.id for prompt in loaded] == [0, 1, 2] and bad == []


def test_other_names_of_columns_are_read_and_one_that_no_record_has_is_refused(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("ID,Request,Harmfulness\n7,Hi?,harmless\n")
    (prompt,), _ = load(path, columns=dict(id="ID", prompt="Request"))
    assert (prompt.id, prompt.shown) == ("7", "Hi?")
    with pytest.raises(InputError, match=r"no record has prompt or messages; columns found: ID, Request, Harmfulness"):
        load(path)
    with pytest.raises(InputError, match=r"columns.prompt='Reqest': no record has it; columns found: ID, Request"):
        load(path, columns=dict(prompt="Reqest"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"id": 3}, "prompt is empty"),
        ({"prompt": 5}, "prompt='5' is neither a text, nor messages, nor token ids"),
        ({"prompt": "x" * 60}, "prompt has 61 tokens and max_new_tokens=8"),
        ({"prompt": [5, 264]}, "prompt has 264, which is not a token id from 0 to 263"),
        ({"prompt": "a", "temperature": -1}, "temperature=-1"),
        ({"prompt": "a", "stop": [""]}, "stop=['']"),
        ({"prompt": "a", "max_new_tokens": 64}, "max_new_tokens=64"),
        ({"prompt": "a", "system": "b"}, "needs --config.chat=True"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "there is nothing to answer"),
        ({"messages": [{"role": "user", "content": ""}]}, "the last message is empty"),
        ({"messages": [{"role": "user", "content": [{"image": "x"}]}]}, "which no text model reads"),
        ("{", "not JSON"),
        ("[1]", "not an object"),
    ],
)
def test_a_record_that_cannot_be_answered_is_set_aside_with_its_line_and_why(tmp_path, row, said):
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "good"}, row, {"prompt": "good too"})
    loaded, (bad,) = load(path)
    assert [prompt.shown for prompt in loaded] == ["good", "good too"]
    assert (bad.file, bad.line) == (str(path), 2) and said in bad.reason


def test_a_column_that_is_nearly_an_option_is_named(tmp_path, capsys):
    load(jsonl(tmp_path / "p.jsonl", {"prompt": "a", "temperatur": 0.5, "category": "x", "n": 2}))
    said = capsys.readouterr().out
    assert "'temperatur' is not read" in said and "'temperature'" in said and "category" not in said


def test_an_answer_draws_by_its_id_and_not_by_its_place(tmp_path):
    rows = [{"id": name, "prompt": "hi"} for name in ("a", "b", "a")]
    forth, _ = load(jsonl(tmp_path / "1.jsonl", *rows))
    back, _ = load(jsonl(tmp_path / "2.jsonl", {"prompt": "hi"}, *rows[::-1]))
    assert [p.seed for p in forth[:2]] == [back[1].seed, back[2].seed]
    assert len({p.seed for p in forth}) == 3  # the second record of an id draws anew
    other, _ = load(tmp_path / "1.jsonl", seed=1)
    assert not {p.seed for p in forth} & {p.seed for p in other}


def test_a_record_with_a_seed_of_its_own_draws_by_it_and_n_answers_share_one_prompt(tmp_path):
    (prompt,), _ = load(jsonl(tmp_path / "p.jsonl", {"prompt": "hi", "seed": 5, "n": 3, "logprobs": 0, "echo": True}))
    first, second, third = prompt.requests()
    assert {first.seed, second.seed, third.seed} == {5} and [first.sample, second.sample, third.sample] == [0, 1, 2]
    assert first.prompt is second.prompt and first.prompt_logprobs


def test_a_limit_reads_the_first_records_and_a_file_without_records_is_refused(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", *({"prompt": str(i)} for i in range(9)))
    assert len(load(path, limit=2)[0]) == 2
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no records"):
        load(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file"):
        prompts.check(str(tmp_path / "none.jsonl"))
