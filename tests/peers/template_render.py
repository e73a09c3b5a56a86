"""Chat templates against transformers: every template on every conversation, with and without the generation prompt.

Templates: the shipped ones, small ones below that use what templates in the wild use, and every `*.jinja` of the folders
given. `--write` records the cases of the first two in tests/tokenize_render.json, which `cargo test` checks without Python.

Usage: PYTHON tests/peers/template_render.py [--write] [folder of templates]...
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "tokenize_render.json"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

SMALL = {
    # what R1's own template does: reasoning dropped from the turn, opened by the generation prompt
    "drops reasoning": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='', first=true) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}{%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{ '<U>' + message['content'] }}{%- endif -%}
  {%- if message['role'] == 'assistant' and message['content'] is not none -%}
    {%- set content = message['content'] -%}
    {%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
    {{ '<A>' + content + eos_token }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<A><think>\\n' }}{% if not enable_thinking %}{{- '</think>' -}}{% endif %}{%- endif %}
""",
    # what Qwen3's does: turns counted from the end, reasoning cut out and set again
    "rebuilds reasoning": """
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '[' + message.role + ']\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '[' + message.role + ']\\n' + content }}
        {%- endif %}
        {{- '[end]\\n' }}
    {%- else %}
        {{- '[' + message.role + ']\\n' + message.content + '[end]' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "trims and asks for a system message": """{{- bos_token }}
{%- if messages[0]['role'] != 'system' %}
    {{- raise_exception('A system message must come first, not "' + messages[0]['role'] + '" <&>') }}
{%- endif %}
{#- a comment #}
{%- set system = messages[0]['content']|trim %}{% set messages = messages[1:] %}
{{- system }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {{- '\\n' + message['role'] + ': ' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}""",
    "white space": """
  {% if messages %}
    lead
  {% endif %}
{% for message in messages %}
  {%+ if loop.first %}first {% endif +%}
{{ message.role }}:  {{- message.content }}
  {# gone #}
  {% raw %}{{ kept }} {% generation %}{% endraw %}
{% endfor %}
tail

""",
    "generation block": """{% for message in messages %}
{% if message.role == 'assistant' %}
{% set x = 'out' %}
{%- generation -%}
  {{ message.content }}{% set x = 'in' %}
{% endgeneration %}
({{ x }})
{% else %}
{{ message.role }}
{% endif %}
{% endfor %}
""",
    "values": """{{ messages[0] | tojson }}
{{ messages | tojson(indent=2) }}
{{ {'b': 1.0, 'a': [true, none, 1e20, 'é<&>'], 'c': {}} | tojson }}
{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }} {{ 'é' | tojson(ensure_ascii=true) }}
{{ true }} {{ none }} {{ [1, 'a', none, true] }} {{ {'a': 1.5} }} {{ undefined_name }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }}
{{ messages | length }} {{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ 'x' is string }} {{ messages is iterable }} {{ 'x' is iterable }} {{ messages[0] is mapping }} {{ 'x' is sequence }} {{ 3 is number }}
{{ "caf\\u00e9 \\x41\\t|" }} {{ 'a' ~ 1 ~ none }} {{ 'Hello World'.lower() }} {{ ' x '.strip() }}| {{ 'a,b,c'.split(',') }} {{ 'a  b'.split() }}
{{ 'abc'[1] }} {{ 'abc'[::-1] }} {{ 'abc'[-2:] }} {{ 'x' * 3 }} {{ 'a' if false }} {{ 'aXbX'.replace('X', '-') }} {{ 'abc'.find('c') }}
{{ tools is none }} {{ documents is none }} {{ messages[0].get('missing', 'default') }} {{ messages[0].missing is defined }}
{% for key, value in messages[0].items() %}{{ key }}={{ value | length }};{% endfor %}
{% for number in range(10) %}{% if number == 1 %}{% continue %}{% elif number == 4 %}{% break %}{% endif %}{{ number }}{{ loop.revindex0 }}{% endfor %}
{%- macro twice(x, mark='!') -%}{{ x }}{{ x }}{{ mark }}{%- endmacro %}
{{ twice('ab') }} {{ twice('c', mark='?') }} {{ strftime_now('%Y')[:2] }} {{ namespace(a=1).a }} {{ dict(a=1) | tojson }}
{{ 'x' in 'xyz' }} {{ 'role' in messages[0] }} {{ messages[0].role not in ['a'] }} {{ '%s-%d' | format('a', 3) }} {{ [3, 1, 2] | sort | first }}
""",
    "fails": "{{ messages[5].content.nothing }}",
}

THINK = "<think>\nFirst 2+2.\n\nThen 4.\n</think>\n\nThe answer is \\boxed{4}."
CONVERSATIONS = {
    "one turn": [("user", "What is 2+2?")],
    "with an answer": [("user", "What is 2+2?"), ("assistant", "4")],
    "with reasoning": [("user", "What is 2+2?"), ("assistant", THINK)],
    "system": [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")],
    "system alone": [("system", "Be brief.")],
    "turns with reasoning": [("system", " Think. \n"), ("user", "1"), ("assistant", THINK), ("user", "2"), ("assistant", THINK),
                             ("user", "3")],
    "ends with reasoning": [("user", "1"), ("assistant", "<think>a</think>b"), ("user", "2"), ("assistant", THINK)],
    "reasoning unopened": [("user", "1"), ("assistant", "so\n</think>\n\nb</think>c")],
    "reasoning unclosed": [("user", "1"), ("assistant", "<think>\nfor ever")],
    "empty": [("user", ""), ("assistant", "")],
    "empty system": [("system", ""), ("user", "x")],
    "spaces": [("user", " \t\u3000 a b \u00a0\n\n"), ("assistant", "\n\n x \x1c\u2028")],
    "Chinese": [("system", "你是一个助手。"), ("user", "请解方程 x²=4。"), ("assistant", "<think>\n两边开方。\n</think>\n\n所以 x=±2。")],
    "emoji": [("user", "👩‍👩‍👧‍👦 é e\u0301 🇩🇪?"), ("assistant", "👍🏽")],
    "markup": [("user", "<b>&amp;\"'{{ x }}{% if %}</b>"), ("assistant", "a<|im_end|>\\n\\u00e9")],
    "two users": [("user", "a"), ("user", "b"), ("assistant", "c")],
    "assistant first": [("assistant", "a"), ("user", "b")],
    "late system": [("user", "a"), ("system", "b"), ("user", "c")],
    "unknown role": [("critic", "a"), ("user", "b")],
    "none": [],
}
CONVERSATIONS = {name: [{"role": r, "content": c} for r, c in turns] for name, turns in CONVERSATIONS.items()}
CONVERSATIONS["reasoning field"] = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "b", "reasoning_content": "a"},
    {"role": "user", "content": "2", "weight": 1.5},
    {"role": "assistant", "content": "d", "thinking": "c"},
]
VARIABLES = [{}, {"enable_thinking": True}, {"enable_thinking": False, "date_string": "1 Jan 2025"}]


def render(template, messages, add_generation_prompt, variables):
    if not messages:  # refused by apply_chat_template before it renders
        return {"error": "no message"}
    try:
        [text], _ = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=add_generation_prompt, **SPECIAL, **variables
        )
        return {"text": text}
    except jinja2.exceptions.TemplateError as error:
        raised = type(error) is jinja2.exceptions.TemplateError
        return {"error": str(error) if raised else ""}
    except TypeError:
        return {"error": ""}


def collect(templates):
    cases = []
    for (name, source), conversation, prompt in itertools.product(templates.items(), CONVERSATIONS, (False, True)):
        seen = []
        for variables in VARIABLES:
            result = render(source, CONVERSATIONS[conversation], prompt, variables)
            if result not in seen:
                seen.append(result)
                cases.append({"template": name, "conversation": conversation, "add_generation_prompt": prompt,
                              "variables": variables, **result})
    return {"special_tokens": SPECIAL, "templates": templates, "conversations": CONVERSATIONS, "cases": cases}


def main():
    arguments = [a for a in sys.argv[1:] if a != "--write"]
    shipped = {path.stem: path.read_text() for path in sorted((ROOT / "models" / "templates").glob("*.jinja"))}
    own = {**SMALL, **shipped}
    if "--write" in sys.argv:
        RECORDED.write_text(json.dumps(collect(own), ensure_ascii=False, indent=0) + "\n")
    given = {str(path): path.read_text() for folder in arguments for path in sorted(pathlib.Path(folder).glob("*.jinja"))}
    cases = collect({**own, **given})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(cases, file)
        file.flush()
        subprocess.run(
            ["cargo", "test", "--release", "--quiet", "--test", "tokenize_render"],
            cwd=ROOT, check=True, env={**os.environ, "DISTILL_RENDER_CASES": file.name},
        )
    errors = sum("error" in case for case in cases["cases"])
    print(f"template_render: {len(cases['cases'])} renderings of {len(cases['templates'])} templates equal, {errors} refused alike")


if __name__ == "__main__":
    main()
