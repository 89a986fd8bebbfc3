"""Every preference file at hand through every tokenizer; skipped where there is no shared data."""

import pytest

from data import records
from data.texts import answers, preferences
from data.tokens import tokenizer

FILES = {
    "pref_alpaca_eval/alpaca_eval_gpt4_pairs_a.jsonl": (3376, {"tie": 35, "empty answer": 2}),
    "pref_hh_harmless/hh_harmless_base_test_a.jsonl": (
        1159,
        {"dialogues have different prompts": 2, "empty answer": 2},
    ),
    "pref_llamafactory_demo/dpo_en_demo.json": (300, {}),
    "pref_llamafactory_demo/kto_en_demo.json": (300, {}),
}


@pytest.mark.parametrize("name", FILES)
def test_counts_add_up_and_splits_are_apart(shared_data, name):
    num, dropped = FILES[name]
    train, heldout, report = preferences.load(
        path=str(shared_data / name), tokenizer=tokenizer.load("bytes"), max_len=2048
    )
    assert report["records"] == num and {k: report[k] for k in dropped} == dropped
    assert len(train) + len(heldout) == num - sum(dropped.values()) and len(heldout) > num * 0.05
    fold = lambda pairs: {" ".join(i.prompt_text().casefold().split()) for i in pairs.items}  # noqa: E731
    assert not fold(train) & fold(heldout)
    for one, other in ((train, heldout), (heldout, train)):
        openings = tuple(p + " " for p in fold(one) if len(p) >= 20)
        assert not any(p.startswith(openings) for p in fold(other))


@pytest.mark.parametrize("name", FILES)
def test_the_learned_part_is_exactly_the_answer(shared_data, real_tokenizers, name):
    train, _, _ = preferences.load(path=str(shared_data / name), tokenizer=tokenizer.load("bytes"), limit=60)
    for tok_name, tok in real_tokenizers.items():
        for item in train.items[:25]:
            for answer in item.answers:
                text, boundary, _ = answers.texts(tok, item, answer)
                a = answers.encode(tok, [item], [answer])[0]
                _, offsets = tok.encode_with_offsets(text)
                num_bos = int(tok.adds_bos and not text.startswith(tok.tokens["bos_token"]))
                begin = offsets[a.prompt_len - num_bos][0]
                assert text[boundary:begin].strip() == "" or a.is_merged, (tok_name, text[boundary:begin])
                assert text[boundary:].strip().startswith(answer.strip()), tok_name
                if tok.bos_id is not None:
                    assert (a.ids == tok.bos_id).sum() == int(tok.adds_bos), tok_name
                if tok.eos_id is not None:
                    assert a.ids[-1] in tok.stop_ids, tok_name


def test_text_files_pack(shared_data):
    from data.texts import text

    tok = tokenizer.load("bytes")
    train, heldout, _ = text.load(
        path=str(shared_data / "text_en_web" / "c4_demo.jsonl"), tokenizer=tok, max_len=1024, limit=100
    )
    read = records.read(str(shared_data / "text_en_web" / "c4_demo.jsonl"))[0][:100]
    num = sum(len(r.value["text"].encode()) + 1 for r in read)  # every byte and one EOS each
    assert int(train.counts.sum() + heldout.counts.sum()) == num
