import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

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
    assert BYTES.encode("a", add_bos=True) == [257, 97]
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
    with pytest.raises(InputError, match="pip install 'plumbline\\[hub\\]'"):
        tokenizer.load("hf:owner/name")


CHATML = {"<|im_start|>": 12, "<|im_end|>": 13}


def sentencepiece_folder(path, *, added=None, **config):
    """A sentencepiece BPE model of a few pieces with byte fallback, as Llama 2 and its descendants ship theirs."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abcxy", "ab", "▁a", "▁ab", "▁▁"]
    proto = sentencepiece_model_pb2.ModelProto()
    for i, piece in enumerate(pieces):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
        proto.pieces.add(piece=piece, type=kind, score=-float(i))
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback, spec.pad_id = spec.BPE, len(pieces), True, -1
    proto.normalizer_spec.CopyFrom(
        sentencepiece_model_pb2.NormalizerSpec(name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False)
    )
    path.mkdir()
    (path / "tokenizer.model").write_bytes(proto.SerializeToString())
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"} | config
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if added:
        (path / "added_tokens.json").write_text(json.dumps(added))
    return path


def test_added_tokens_json_beside_a_tokenizer_json_is_read(tmp_path):
    folder = small_folder(tmp_path / "tok", eos_token="<|im_end|>")
    (folder / "added_tokens.json").write_text(json.dumps(CHATML))
    tok = tokenizer.load(str(folder))
    assert tok.encode("<|im_start|>hi<|im_end|>") == [12, 10, 13]
    assert (tok.eos_id, tok.vocab_size, tok.stop_ids) == (13, 14, (13,))
    assert tok.decode([12, 10, 13]) == "<|im_start|> hi"  # the one that is not named is not special, as in transformers


def test_added_tokens_json_beside_a_tokenizer_model_is_read_and_exported(tmp_path):
    added = {"<|im_start|>": 270, "<|im_end|>": 272}  # 269 is in the model, and nobody has 271
    folder = sentencepiece_folder(tmp_path / "tok", added=added, eos_token="<|im_end|>")
    tok = tokenizer.load(str(folder))
    ids = tok.encode("<|im_start|>ab<|im_end|> a")
    assert ids[0] == 270 and 272 in ids and tok.eos_id == 272 and tok.vocab_size == 273
    tok.save(str(tmp_path / "out"))
    assert tokenizer.load(str(tmp_path / "out")).encode("<|im_start|>ab<|im_end|> a") == ids
    assert (tmp_path / "out" / "added_tokens.json").read_bytes() == (folder / "added_tokens.json").read_bytes()


@pytest.mark.parametrize("make", [small_folder, sentencepiece_folder])
@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<|im_end|>"},
        {"pad_token": {"content": "<|im_end|>"}},
        {"additional_special_tokens": ["<s>", "<|im_end|>"]},
        {"extra_special_tokens": {"end": "<|im_end|>"}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_special_token_without_an_id_is_refused(tmp_path, make, config):
    with pytest.raises(InputError, match=r"'<\|im_end\|>' is named as a special token but has no id; give"):
        tokenizer.load(str(make(tmp_path / "tok", **config)))


def test_a_null_or_empty_special_token_is_none(tmp_path):
    tok = tokenizer.load(str(small_folder(tmp_path / "tok", bos_token=None, unk_token="", adds_bos=False)))
    assert tok.bos_id is None and not tok.adds_bos


def test_an_added_token_whose_id_the_vocabulary_cannot_give_is_refused(tmp_path):
    folder = small_folder(tmp_path / "tok")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 40}))
    with pytest.raises(InputError, match="has id 12, its config says 40"):
        tokenizer.load(str(folder))


def test_special_tokens_map_speaks_where_the_newer_list_does_not(tmp_path):
    folder = small_folder(tmp_path / "tok")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    assert tokenizer.load(str(folder)).eos_id == 3
    newer = small_folder(folder, added_tokens_decoder={"3": {"content": "<|end|>", "special": True}})
    assert tokenizer.load(str(newer)).eos_id == 1


@pytest.mark.parametrize("make", [small_folder, sentencepiece_folder])
@pytest.mark.parametrize(
    ("flags", "text", "covered"),
    [
        ({"rstrip": True}, "a <m>  b", "<m>  "),
        ({"lstrip": True}, "a  <m> b", "  <m>"),
        ({"lstrip": True, "rstrip": True}, "a \n <m>\n b", " \n <m>\n "),
        ({"single_word": True}, "a<m> <m> b", "<m>"),
        ({}, "a <m> b", "<m>"),
    ],
    ids=["rstrip", "lstrip", "both", "single_word", "none"],
)
def test_an_added_token_takes_the_white_space_that_its_flags_say(tmp_path, make, flags, text, covered):
    new = 12 if make is small_folder else 269
    entry = {"content": "<m>", "special": True, "normalized": False, **flags}
    tok = tokenizer.load(str(make(tmp_path / "tok", added_tokens_decoder={str(new): entry})))
    ids, offsets = tok.encode_with_offsets(text)
    assert ids.count(new) == 1
    start, end = offsets[ids.index(new)]
    assert text[start:end] == covered and (flags != {"single_word": True} or start == 5)


@pytest.mark.parametrize("text", [" a", "  ab", "a  b", " ", "<s> ab", "▁a", "\n a", "ab </s> a", "x", ""])
def test_a_sentencepiece_export_splits_text_with_leading_blanks_as_the_model(tmp_path, text):
    tok = tokenizer.load(str(sentencepiece_folder(tmp_path / "tok")))
    tok.save(str(tmp_path / "out"))
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert exported.encode(text, add_special_tokens=False).ids == tok.encode(text)


@pytest.mark.parametrize("place", ["list", "object", "files"])
def test_several_templates_without_a_default_are_refused_with_their_names(tmp_path, place):
    named = {"rag": "R", "tool_use": "T"}
    as_list = [{"name": name, "template": text} for name, text in named.items()]
    config = {"list": {"chat_template": as_list}, "object": {"chat_template": named}, "files": {}}[place]
    folder = small_folder(tmp_path / "tok", **config)
    if place == "files":
        (folder / "additional_chat_templates").mkdir()
        for name, text in named.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    with pytest.raises(InputError, match=r"named rag, tool_use, and none is 'default'; write .*chat_template\.jinja"):
        tokenizer.load(str(folder))
    (folder / "chat_template.jinja").write_text("J")
    tok = tokenizer.load(str(folder))
    tok.save(str(tmp_path / "out"))
    assert tok.chat_template == "J"
    assert (tmp_path / "out" / "additional_chat_templates").is_dir() == (place == "files")


@pytest.mark.parametrize("template", ["a", "{% for m in messages %}{{ m.content }}a{% endfor %}"])
def test_a_letter_or_a_template_without_answers_ends_nothing(tmp_path, template):
    assert tokenizer.load(str(small_folder(tmp_path / "tok", template=template))).stop_ids == (1,)


def test_a_chat_template_of_another_shape_is_refused(tmp_path):
    with pytest.raises(InputError, match="chat_template must be one template, or a list of objects"):
        tokenizer.load(str(small_folder(tmp_path / "tok", chat_template=[{"template": "T"}])))
    with pytest.raises(InputError, match="chat_template must be one template, or a list of objects"):
        tokenizer.load(str(small_folder(tmp_path / "two", chat_template=[{"name": "default", "template": 3}])))


def test_a_template_file_begins_behind_its_byte_order_mark(tmp_path):
    folder = small_folder(tmp_path / "tok")
    (folder / "chat_template.jinja").write_bytes("\ufeff{{ messages[0].content }}".encode())
    assert tokenizer.load(str(folder)).render([{"role": "user", "content": "q"}]) == "q"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("eos_token", 2, "'2' under eos_token"),
        ("pad_token", {"content": 1}, "under pad_token"),
        ("additional_special_tokens", [["<a>"]], "under additional_special_tokens"),
        ("additional_special_tokens", "<a>", "must be a list or an object of tokens"),
        ("added_tokens_decoder", {"first": {"content": "<a>"}}, "'first' in added_tokens_decoder, whose keys are ids"),
        ("added_tokens_decoder", [], "must be a list or an object"),
    ],
)
def test_a_token_that_is_no_text_is_refused_by_its_key(tmp_path, key, value, said):
    with pytest.raises(InputError, match=said):
        tokenizer.load(str(small_folder(tmp_path / "tok", **{key: value})))


@pytest.mark.parametrize("content", ['{"eos_token_id": "</s>"}', '{"eos_token_id": [1, null]}'])
def test_ends_that_are_not_ids_are_refused(tmp_path, content):
    folder = small_folder(tmp_path / "tok")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match="ids are whole numbers"):
        tokenizer.load(str(folder))


def test_ends_of_generation_survive_being_saved(tmp_path):
    folder = small_folder(tmp_path / "tok")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3], "temperature": 0.6}')
    tok = tokenizer.load(str(folder))
    tok.save(str(tmp_path / "out"))
    assert tokenizer.load(str(tmp_path / "out")).stop_ids == tok.stop_ids == (1, 3)


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
