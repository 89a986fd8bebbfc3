import time

import pytest

from alignment.errors import InputError
from data.tokens import chat, template_sandbox

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GROW = "{%% set ns = namespace(x='aaaaaaaa') %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
LONG = "{% set x = 'a' * 1000000 %}"
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


def test_plain_template_reads_as_documented():
    template = chat.default_template(with_bos=True)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    text = chat.render(template, TALK, tokens=tokens)
    assert text == "<s>User: hi\n\nAssistant: yes</s>\n\nUser: and\n\nAssistant: no</s>"
    prompt = chat.render(template, TALK[:1], add_generation_prompt=True, tokens=tokens)
    assert prompt == "<s>User: hi\n\nAssistant:" and text.startswith(prompt)


def test_spans_of_all_assistant_turns_hold_the_words_and_the_end_of_turn():
    text, spans = chat.assistant_spans(CHATML, TALK)
    assert [text[a:b] for a, b in spans] == ["yes<|im_end|>", "no<|im_end|>"]
    assert chat.end_of_turn(CHATML) == "<|im_end|>"


def test_generation_blocks_say_the_spans():
    template = "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}!"
    template += "{% endgeneration %}{{ '\\n' }}{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}"
    text, spans = chat.assistant_spans(template, TALK)
    assert text == "U:hi\nA:yes!\nU:and\nA:no!\n" == chat.render(template, TALK)
    assert [text[a:b] for a, b in spans] == ["yes!", "no!"]


def test_last_turn_written_differently_is_still_found_by_its_words():
    template = CHATML.replace(
        "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think>\n</think>\n{% endif %}{{ m.content }}"
    )
    text, spans = chat.assistant_spans(template, TALK)
    assert [text[a:b] for a, b in spans] == ["yes<|im_end|>", "<think>\n</think>\nno<|im_end|>"]


def test_template_without_the_prefix_property_is_refused():
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }};{% endfor %}"
    with pytest.raises(InputError, match="rewrites earlier text"):
        chat.assistant_spans(template, TALK)


def test_what_templates_of_the_hub_use_works():
    template = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
        "{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}{%- if ns.n == 2 -%}{%- break -%}{%- endif -%}{{ m.content | trim }}{%- endfor -%}"
        '|{{ {"b": "<é>", "a": [1, true, none]} | tojson }}|{{ strftime_now("%d %b %Y") }}|{{ "x" ~ 1 ~ none }}'
        "|{{ messages[0]['content'].split('i')[0] }}|{{ messages[-1].get('tool_calls') is none }}"
    )
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo"}]
    assert chat.render(template, messages) == 'hi|{"b": "<é>", "a": [1, true, null]}|26 Jul 2024|x1None| h|True'


def test_formats_with_long_numbers_and_joins_are_allowed():
    template = "{{ 'id 1234567 %s' | format(1) }}|{{ 'id 1234567 {}'.format(2) }}|{{ '%5.2f' % 1.5 }}"
    template += "|{{ ['a', 1, none] | join(', ') }}|{{ messages | map(attribute='role') | join('+') }}"
    template += "|{{ {'a': [1]} }}|{{ {'a': 1} | tojson(indent=1) }}|{{ 'a\\nb' | indent(2) }}|{{ 3 * 4 }}"
    expected = "id 1234567 1|id 1234567 2| 1.50|a, 1, None|user+assistant+user+assistant|{'a': [1]}"
    assert chat.render(template, TALK) == expected + '|{\n "a": 1\n}|a\n  b|12'


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('roles must alternate') }}", "{% if %}", "{{ 1 / 0 }}", "{{ nothing.x.y }}"]
)
def test_template_errors_are_input_errors(template):
    with pytest.raises(InputError, match="chat template fails"):
        chat.render(template, TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ ''['__cl' ~ 'ass__'].__base__.x }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'] }}",
        "{{ ''|attr('__class__')|attr('__mro__')|list }}{{ (''|attr('__class__')).x }}",
    ],
)
def test_hostile_templates_reach_nothing(template):
    with pytest.raises(InputError):
        chat.render(template, TALK)
    assert len(TALK) == 4 and TALK[0]["role"] == "user"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 9**9**9 }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ '%9999999d' | format(1) }}",
        "{{ ('%99999d' * 99) | format(1) }}",
        "{{ '%(a(b))9999999d' % {'a(b)': 1} }}",
        "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ ('a'.encode() * 600000000) | length }}",
        "{{ ('a' * 9000000).translate({97: 'b' * 1000}) | length }}",
        LONG + "{{ ([x] * 3000) | join | length }}",
        LONG + "{{ ([x] * 3000) | map('string') | join | length }}",
        LONG + "{{ ''.join([x] * 3000) | length }}",
        LONG + "{{ 'abc'.join([[x]] * 3000) | length }}",
        LONG + "{{ x.join('a' * 3000) | length }}",
        LONG + "{{ [[x] * 3000] | string | length }}",
        LONG + "{{ [[x] * 3000] }}",
        LONG + "{{ ([[x] * 3000] ~ '') | length }}",
        LONG + "{{ ([x] * 3000) | tojson | length }}",
        LONG + "{{ ('{0}' * 3000).format(x) | length }}",
        LONG + "{{ (('%s' * 3000) % ([x] * 3000)) | length }}",
        "{{ ([[1] * 1000000] * 3000) | sum(start=[]) | length }}",
        "{{ ([1] * 1000000) | tojson(indent=9999) | length }}",
        "{{ ('a\\n' * 9000000) | indent(1000) | length }}",
        "{{ ('a\\n' * 9000000) | indent(width='  ' * 500) | length }}",
        "{{ ('\\t' * 9000000).expandtabs(1000) | length }}",
        GROW % "ns.x ~ ns.x",
        GROW % "ns.x + ns.x",
        GROW % "ns.x.replace('a', 'aaaa')",
        GROW % "ns.x | replace('a', ns.x)",
        GROW % "[ns.x, ns.x] | join",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
)
def test_hostile_templates_stop_within_seconds(template):
    start = time.process_time()  # others may use the machine
    with pytest.raises(InputError):
        chat.render(template, TALK)
    assert time.process_time() - start < 5


def test_a_template_that_calls_itself_again_and_again_stops_at_its_budget(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MAX_STEPS", 5_000)
    with pytest.raises(InputError, match="takes more than 5000 steps"):
        chat.render("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}", TALK)
