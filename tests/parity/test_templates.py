# ruff: noqa: E501 (a template reads best in the lines that it writes)
"""Chat templates in the styles of well-known families, and added tokens, against transformers."""

import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from data.tokens import chat, tokenizer  # noqa: E402
from tests.data.tokens.test_tokenizer import sentencepiece_folder, small_folder  # noqa: E402

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}"
TEMPLATES = {  # our own writing, each in the manner of a family
    "chatml": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END + ASK + "<|im_start|>assistant\n"
    "{% endif %}",
    "chatml, default system": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + LOOP
    + "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    + END,
    "llama 2": "{% if messages[0].role == 'system' %}{% set sys = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ (sys if loop.first else '') + m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
    "llama 3": "{{ bos_token }}" + LOOP + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    + END + ASK + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "mistral": "{{- bos_token }}\n{%- for m in messages %}\n    {%- if m.role == 'user' %}\n"
    "        {{- '[INST] ' + m.content + '[/INST]' }}\n    {%- elif m.role == 'assistant' %}\n"
    "        {{- ' ' + m.content + eos_token }}\n    {%- endif %}\n{%- endfor %}",
    "gemma": "{{ bos_token }}" + LOOP + "{% set role = 'model' if m.role == 'assistant' else m.role %}<start_of_turn>{{ role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n" + END + ASK + "<start_of_turn>model\n{% endif %}",
    "zephyr": LOOP + "\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n" + END,
    "phi": LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END + ASK + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "vicuna": "{% set sep = ' ' %}" + LOOP + "{% if m.role == 'user' %}USER: {{ m.content }}{{ sep }}{% elif m.role == 'assistant' %}"
    "ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}" + END + ASK + "ASSISTANT:{% endif %}",
    "alpaca": LOOP + "{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n{% elif m.role == 'assistant' %}### Response:\n"
    "{{ m.content }}\n\n{% endif %}" + END,
    "tulu": LOOP + "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ ('' if m.role != 'assistant' else eos_token) ~ '\\n' }}" + END,
    "reasoning": LOOP + "{% set text = m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' and not loop.last "
    "else m.content %}<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n" + END,
    "namespace": "{% set ns = namespace(system='', n=0) %}" + LOOP + "{% if m.role == 'system' %}{% set ns.system = m.content %}"
    "{% else %}{% set ns.n = ns.n + 1 %}[{{ ns.n }}{{ ns.system }}] {{ m.content }}\n{% endif %}" + END,
    "tools": "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}" + LOOP + "{{ m.role }}: {{ m.content }}\n" + END,
    "tojson": LOOP + "{{ {'role': m.role, 'text': m.content} | tojson }}\n" + END,
    "loop controls": LOOP + "{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}{{ m.content }}"
    "{% if loop.index > 3 %}{% break %}{% endif %}" + END,
    "macro": "{% macro turn(role, text) %}<{{ role }}>{{ text }}</{{ role }}>{% endmacro %}" + LOOP + "{{ turn(m.role, m.content) }}" + END,
    "filters": LOOP + "{{ m.role | upper }}:{{ m.content | replace('o', '0') | title }}|{{ m.content | length }};" + END
    + "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}",
    "comments and blocks": "{# note #}\n    {% for m in messages %}\n    {{ m.role }}: {{ m.content }}\n    {% endfor %}\n  end",
    "reversed": "{% for m in messages[::-1] %}{{ loop.revindex0 }}{{ m['content'][:3] }}{{ m.get('name', '-') }}" + END,
    "generation": LOOP + "{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n" + END,
    "own answers": LOOP + "{% if m.role is defined and m.content is string %}{{ m.content.strip().split('\\n')[0] }}{% endif %}|" + END,
}  # fmt: skip
SYSTEM = {"role": "system", "content": "Say  little.\n"}
TURNS = [
    {"role": "user", "content": " How many owls?\n"},
    {"role": "assistant", "content": "<think>two</think>\n\nTwo <b>& é 😀</b>. "},
    {"role": "user", "content": "And 'cats'?"},
]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"é": "<x>"}}}]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    folder = small_folder(tmp_path_factory.mktemp("tok"), eos_token="</s>")
    return tokenizer.load(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("asks", [False, True], ids=["", "asks"])
@pytest.mark.parametrize("messages", [TURNS, [SYSTEM, *TURNS], TURNS[:2]], ids=["turns", "system", "answered"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_written_as_transformers_writes_it(peers, name, messages, asks):
    ours, peer = peers
    options = {"add_generation_prompt": asks, "tools": TOOLS}
    expected = peer.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False, **options)
    assert chat.render(TEMPLATES[name], messages, tokens=ours.tokens, **options) == expected


TEXTS = ("a <m>  b", "a  <m> b", "a<m>b", "x<m> <m>", "hi \n <m>\n yes", "<m>", "<s> a </s> b", "  a <m>")
FLAGS = [{}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(flags) or "plain")
@pytest.mark.parametrize("is_special", [True, False], ids=["special", "ordinary"])
@pytest.mark.parametrize("kind", ["json", "sentencepiece, exported", "json, other flags"])
def test_added_tokens_match_as_in_transformers(tmp_path, kind, flags, is_special):
    entry = {"content": "<m>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    entry |= {"special": is_special, **flags}
    new = 3 if kind == "json, other flags" else 269 if kind.startswith("sentencepiece") else 12
    entry |= {"content": "<|end|>"} if new == 3 else {}
    make = sentencepiece_folder if new == 269 else small_folder
    folder = make(tmp_path / "tok", eos_token="</s>", added_tokens_decoder={str(new): entry})
    tok = tokenizer.load(str(folder))
    if new == 269:
        tok.save(str(tmp_path / "out"))
        folder = tmp_path / "out"
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (t.replace("<m>", entry["content"]) for t in TEXTS):
        assert tok.encode(text) == peer.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("named", ["eos_token", "additional_special_tokens", ""])
def test_added_tokens_json_is_read_as_in_transformers(tmp_path, named):
    config = {named: "<|im_end|>" if named == "eos_token" else ["<|im_end|>"]} if named else {}
    folder = small_folder(tmp_path / "tok", **{"eos_token": "</s>"} | config)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 13, "<|im_start|>": 12}))
    tok, peer = tokenizer.load(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("<|im_start|>hi<|im_end|> a", "hi <|im_end|>yes"):
        ids = tok.encode(text)
        assert ids == peer.encode(text, add_special_tokens=False)
        assert tok.decode(ids) == peer.decode(ids, skip_special_tokens=True)
    assert tok.eos_id == peer.eos_token_id
