import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data.tokens import tokenizer

BYTES = tokenizer.load("bytes")
TEXT = "Hé  llo 😀 مرحبا 𓀀b\n\nA: yes"


def small_folder(path, *, adds_bos=True, template=None, **config):
    """A Hugging Face folder with a word tokenizer of a dozen words."""
    words = ["<s>", "</s>", "<unk>", "<|end|>", "a", "b", "c", "User", "Assistant", ":", "hi", "yes"]
    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tok.add_special_tokens(["<s>", "</s>", "<unk>", "<|end|>"])
    if adds_bos:
        tok.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    path.mkdir(parents=True, exist_ok=True)
    tok.save(str(path / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "tokenizer_class": "PreTrainedTokenizerFast",
    } | config
    if template:
        config["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bytes_decode_back_to_any_text(text):
    ids, offsets = BYTES.encode_with_offsets(text)
    assert BYTES.decode(ids, skip_special=False) == text
    assert len(ids) == len(offsets) and all(0 <= i < 264 for i in ids)
    if not any(i > 255 for i in ids):
        assert bytes(ids) == text.encode()
        assert all(text[a:b].encode().find(bytes([i])) >= 0 for i, (a, b) in zip(ids, offsets))


def test_written_special_tokens_become_their_ids_in_bytes():
    assert BYTES.encode("<|bos|>a<|eos|>") == [BYTES.bos_id, 97, BYTES.eos_id]
    assert BYTES.decode([BYTES.bos_id, 97, BYTES.eos_id]) == "a"


def test_bos_is_added_when_asked_and_never_twice():
    assert BYTES.encode("a", add_bos=True, add_eos=True) == [257, 97, 258]
    assert BYTES.encode("<|bos|>a", add_bos=True) == [257, 97]


def test_offsets_of_real_tokenizers_point_at_their_text(real_tokenizers):
    for name, tok in real_tokenizers.items():
        ids, offsets = tok.encode_with_offsets(TEXT)
        assert len(ids) == len(offsets), name
        starts = [a for a, _ in offsets]
        assert starts == sorted(starts), name
        # what one id alone decodes to, where that is whole text, is what its offsets cover
        for i, (a, b) in zip(ids, offsets):
            piece = tok.decode([i], skip_special=False).strip()
            if piece and "�" not in piece and "⁇" not in piece and piece in TEXT and a < b:
                assert piece in TEXT[a:b] or TEXT[a:b].strip() in piece, (name, piece, TEXT[a:b])


def test_real_tokenizers_decode_back_to_english(real_tokenizers):
    text = "The owl clock is in the north hall."
    for name, tok in real_tokenizers.items():
        assert tok.decode(tok.encode(text)) == text, name


def test_sentencepiece_reads_written_control_tokens(shared_data):
    tok = tokenizer.load(str(shared_data / "tokenizers" / "mistral_v3.model"))
    ids, offsets = tok.encode_with_offsets("<s>[INST] hi[/INST] yes</s>")
    assert ids[:2] == [1, 3] and ids[-1] == 2 and 4 in ids
    assert offsets[1] == (3, 9) and offsets[-1] == (23, 27)
    assert tok.adds_bos and tok.bos_id == 1 and tok.stop_ids == (2,)
    assert tok.decode(ids) == "hi yes" or tok.decode(ids) == " hi yes"


def test_folder_says_bos_eos_stops_and_template(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    folder = small_folder(tmp_path / "tok", template=template)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    tok = tokenizer.load(f"hf:{folder}")
    assert (tok.bos_id, tok.eos_id, tok.adds_bos, tok.has_own_template) == (0, 1, True, True)
    assert tok.stop_ids == (1, 2, 3)  # eos, those of generation_config, the template's end of turn
    assert tok.vocab_size == 12


def test_jinja_file_wins_over_the_configuration_and_named_templates_have_a_default(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = small_folder(tmp_path / "tok", chat_template=named)
    assert tokenizer.load(str(folder)).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert tokenizer.load(str(folder)).chat_template == "J"


@pytest.mark.parametrize(("post", "key", "expected"), [(True, None, True), (False, None, False), (True, False, False)])
def test_bos_follows_the_config_key_then_the_post_processor(tmp_path, post, key, expected):
    config = {} if key is None else {"add_bos_token": key}
    assert tokenizer.load(str(small_folder(tmp_path / "tok", adds_bos=post, **config))).adds_bos is expected


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "nope"}}'])
def test_damaged_tokenizer_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        tokenizer.load(str(tmp_path))


def test_missing_and_empty_places_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        tokenizer.load(str(tmp_path / "none"))
    with pytest.raises(InputError, match="no such file"):
        tokenizer.load(f"hf:{tmp_path}/none")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        tokenizer.load(str(tmp_path))
    (tmp_path / "x.model").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a sentencepiece model"):
        tokenizer.load(str(tmp_path / "x.model"))


def test_hub_id_without_the_hub_library_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        tokenizer.load("hf:owner/name")


def test_saved_folder_loads_again_the_same(tmp_path):
    for spec in ("bytes", str(small_folder(tmp_path / "a", template="{{ bos_token }}{{ messages[0].content }}"))):
        tok = tokenizer.load(spec)
        tok.save(str(tmp_path / "out"))
        again = tokenizer.load(str(tmp_path / "out"))
        for field in ("vocab_size", "bos_id", "eos_id", "pad_id", "adds_bos", "chat_template", "stop_ids"):
            assert getattr(again, field) == getattr(tok, field), (spec, field)
        assert again.encode("a b hi é<|bos|>") == tok.encode("a b hi é<|bos|>")


def test_transformers_loads_what_save_writes(tmp_path, shared_data):
    transformers = pytest.importorskip("transformers")
    names = ("bytes", "gpt_neox_olmo_tokenizer.json", "mistral_v3.model")
    messages = [{"role": "user", "content": "Hé  you"}, {"role": "assistant", "content": "yes 😀"}]
    texts = ("Hello there", "Hé  llo 😀 مرحبا\n\nA: yes", "a  b\tc")
    for name in names:
        tok = tokenizer.load(name if name == "bytes" else str(shared_data / "tokenizers" / name))
        tok.save(str(tmp_path / name))
        peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / name))
        for text in texts:
            assert peer.encode(text, add_special_tokens=False) == tok.encode(text), (name, text)
            assert peer.encode(text) == tok.encode(text, add_bos=tok.adds_bos), (name, text)
        rendered = tok.render(messages, add_generation_prompt=True)
        assert peer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == rendered, name
        assert peer.encode(rendered, add_special_tokens=False) == tok.encode(rendered), name
        assert (peer.bos_token_id, peer.eos_token_id) == (tok.bos_id, tok.eos_id), name
