# ruff: noqa: E501
"""Chat templates: what transformers renders is rendered, to the character, and what would not end ends."""

import json
import threading

import pytest
from timing import fastest_of_three
from tokenizers_tiny import (
    BARE,
    BRACKETS,
    CHATML,
    ENDED,
    MARKED,
    MARKED_TO_THE_LINE_END,
    THINKING,
    UNSTABLE,
    byte_level,
    metaspace,
)

from headedit import HeadEditError
from headedit.data.chat import chat_text, chat_tokens
from headedit.data.chat_templates import render_chat
from headedit.data.encoder import Encoder
from headedit.data.records import Conversation

LLAMA_3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- tool_call.arguments | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- continue %}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if message == user_messages[-1] %}{{ '[LAST]' }}{%- endif %}"
    "{{ '[INST] ' ~ message['content'] ~ ' [/INST]' }}{%- elif message.role == 'assistant' %}"
    "{{ ' ' + message.content|trim + eos_token }}{%- else %}{{ raise_exception('Only user and assistant') }}"
    "{%- endif %}{%- endfor %}"
)
MACROS = (
    "{%- macro turn(role, text='') -%}<{{ role }}>{{ text }}{{ caller() if caller }}</{{ role }}>{%- endmacro -%}"
    "{% for m in messages %}{% call turn(m.role) %}{{ m.content | upper | replace('A', 'b') }}{% endcall %}"
    "{{ turn('x', '%s-%03d' % (m.role, loop.index)) }}{{ '{}|{:>8}'.format(loop.index, m.role) }}"
    "{{ [m.role, loop.cycle('a', 'b'), 1.5, true, none] | join(',') }}{{ {'a': [1, m.role]} | tojson(indent=2) }}"
    "{{ dict(a=1, b=[2]).items() | list }}{{ m.content | length ** 2 // 3 }}{{ m | dictsort | first }}"
    "{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}"
    "{% for group in messages | groupby('role') %}{{ group.grouper }}{{ group.list | map(attribute='content') | list }}"
    "{% endfor %}{{ messages | map(attribute='role') | unique | join('/') | indent(3) | center(40) }}"
    "{% filter title %}{{ messages[0].content }}{% endfilter %}{% set x %}{{ 'a' * 3 }}{% endset %}{{ x * 2 }}"
    "{{ range(5) | batch(2, 0) | list }}{{ [3, 1, 2] | sort(reverse=true) }}{{ 7 | round(1) }}{{ 'a b' | wordcount }}"
    "{{ messages | sum(start=0, attribute='n') if false else 'none' }}{{ [[1, 2], [3]] | sum(start=[]) }}"
    "{{ missing }}{{ missing | default('d') }}{{ 'x' in 'xyz' }}{{ 1 < 2 < 3 }}{{ (1, 2) }}{{ 'é\\n' | tojson }}"
)
TEMPLATES = {
    "chatml": CHATML,
    "marked": MARKED,
    "marked to the line's end": MARKED_TO_THE_LINE_END,
    "brackets": BRACKETS,
    "thinking": THINKING,
    "ended": ENDED,
    "bare": BARE,
    "unstable": UNSTABLE,
    "Llama 3": LLAMA_3,
    "Qwen 3": QWEN_3,
    "Mistral": MISTRAL,
    "macros and filters": MACROS,
    "marks in a loop with trimmed blocks": (
        "{%- for m in messages -%}\n  {{ m.role }}:\n  {%- if m.role == 'assistant' %}\n  {% generation %}\n"
        "  {{- m.content }}{{ eos_token }}\n  {%- endgeneration %}\n  {%- else %} {{ m.content }} {% endif %}\n"
        "{%- endfor -%}\n"
    ),
}
CHATS = [
    [{"role": "user", "content": "What is the sum?"}, {"role": "assistant", "content": " Five. "}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "a {{ b }} <|im_end|> é 😀"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nb"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "the answer\nis b c"},
    ],
    [{"role": "user", "content": "x" * 50}] * 3 + [{"role": "assistant", "content": "y"}] * 4,
]


@pytest.mark.parametrize("chat", range(len(CHATS)))
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_renders_as_in_transformers(name, chat):
    for tokenizer in (byte_level(TEMPLATES[name]), metaspace(TEMPLATES[name])):
        for prompt in (False, True):
            try:
                expected = tokenizer.apply_chat_template(CHATS[chat], tokenize=False, add_generation_prompt=prompt)
            except Exception as error:
                with pytest.raises(HeadEditError, match=type(error).__name__):
                    chat_text(tokenizer, CHATS[chat], "here", prompt=prompt)
            else:
                assert chat_text(tokenizer, CHATS[chat], "here", prompt=prompt) == expected


@pytest.mark.parametrize("chat", range(len(CHATS)))
@pytest.mark.parametrize("name", [name for name, text in TEMPLATES.items() if "generation %" in text])
def test_the_marks_of_a_chat_template_are_those_of_transformers(name, chat):
    from headedit.data.chat import _mask

    tokenizer = byte_level(TEMPLATES[name])
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    expected = tokenizer.apply_chat_template(CHATS[chat], **options)
    text, marks = render_chat(TEMPLATES[name], CHATS[chat], **tokenizer.special_tokens_map)
    encoded = tokenizer(text, add_special_tokens=False)
    assert encoded["input_ids"] == list(expected["input_ids"])
    assert _mask(encoded, len(encoded["input_ids"]), marks) == list(expected["assistant_masks"])
    assert any(expected["assistant_masks"])


def test_a_refusal_of_a_chat_template_is_reported_with_its_words():
    with pytest.raises(HeadEditError, match=r"here: .*refuses .*TemplateError: Only user and assistant"):
        chat_text(byte_level(MISTRAL), [{"role": "tool", "content": "a"}], "here")
    with pytest.raises(HeadEditError, match="refuses the conversation"):
        chat_text(byte_level("{{ messages.nothing.at_all }}"), CHATS[0], "here")
    with pytest.raises(HeadEditError, match="begins with an underscore"):
        chat_text(byte_level("{% set n = namespace(_a=1) %}"), CHATS[0], "here")
    assert render_chat("{% set n = namespace(self=1) %}{{ n.self }}", CHATS[0])[0] == "1"
    with pytest.raises(HeadEditError, match="unsafe"):
        chat_text(byte_level("{{ messages.__class__.__mro__ }}"), CHATS[0], "here")


def test_a_tokenizer_with_code_of_its_own_for_chats_is_asked():
    tokenizer = byte_level(CHATML)

    class Own(type(tokenizer)):
        def apply_chat_template(self, conversation, **options):
            return f"own {len(conversation)} {options['add_generation_prompt']}"

    tokenizer.__class__ = Own
    assert chat_text(tokenizer, CHATS[0], "here", prompt=True) == "own 2 True"


BOMBS = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over messages": "{% for i in range(9999) %}{% for j in range(9999) %}{% for m in messages %}"
    "{{ m.role }}{% endfor %}{% endfor %}{% endfor %}",
    "a repeated text": "{{ 'a' * 10**9 }}",
    "a repeated message": "{{ messages[0].content * 10**9 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a padded text": "{{ 'a'.ljust(10**10) }}",
    "a recursive macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(70) }}",
    "doubled text": "{% set n = namespace(x='ab') %}{% for i in range(70) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    "{{ n.x | length }}",
    "doubled lists": "{% set n = namespace(x=[1]) %}{% for i in range(70) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "in a generation": "{% generation %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endgeneration %}",
    "a format": "{{ '{:999999999}'.format(1) }}",
    "deep brackets": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "a long template": "{{ messages }}" * 10**5,
}


def quickly(call):
    messages = []

    def refused():
        with pytest.raises(HeadEditError) as caught:
            call()
        messages.append(str(caught.value))

    assert fastest_of_three(refused) < 1.0
    assert len(messages[0]) < 1000
    return messages[0]


@pytest.mark.parametrize("name", BOMBS)
def test_a_chat_template_ends_within_a_second_with(name):
    tokenizer = byte_level(BOMBS[name])
    message = quickly(lambda: chat_text(tokenizer, CHATS[0], "data.jsonl, line 3"))
    assert "the tokenizer's chat template" in message.lower()
    quickly(lambda: chat_tokens(tokenizer, CHATS[0], "data.jsonl, line 3"))


def test_a_conversation_that_its_template_makes_too_much_of_can_be_skipped():
    tokenizer = byte_level(BOMBS["a repeated message"])
    result = Encoder(tokenizer, skip_malformed=True)(Conversation(0, "line 3", CHATS[0], "messages"))
    assert "line 3: the tokenizer's chat template refuses" in result["fault"]


def test_long_conversations_and_long_texts_are_rendered():
    turns = [
        {"role": role, "content": f"{role} {i} " + "x" * 200} for i in range(500) for role in ("user", "assistant")
    ]
    for template in (CHATML, LLAMA_3, QWEN_3, MISTRAL):
        tokenizer = byte_level(template)
        assert chat_text(tokenizer, turns, "here") == tokenizer.apply_chat_template(turns, tokenize=False)
    wide = [{"role": "user", "content": "x" * 3_000_000}, {"role": "assistant", "content": "y" * 3_000_000}]
    assert len(chat_text(byte_level(QWEN_3), wide, "here")) > 6_000_000


def test_threads_render_with_a_budget_and_marks_each():
    found = {}

    def work(number):
        chat = [{"role": "user", "content": "q" * number}, {"role": "assistant", "content": "r" * number}]
        for _ in range(50):
            text, marks = render_chat(MARKED, chat)
            found.setdefault(number, set()).add((text.count("q"), json.dumps([text[a:b] for a, b in marks])))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: {(n, json.dumps(["r" * n]))} for n in range(1, 9)}
