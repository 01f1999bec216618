# ruff: noqa: E501
"""Templates of tasks: what Jinja renders is rendered, and what would take all time or memory ends in a message."""

import json

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from timing import fastest_of_three

from headedit import HeadEditError, Task, evaluate
from headedit.evaluation.tasks.templates import render
from headedit.io.sandbox import LONGEST

BOMBS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested filter": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "nested list": "{% for i in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "times2": "{{ 10**9 * 'a' }}",
    "times list": "{{ ([1] * 10**9)|length }}",
    "negpow": "{{ 2**(-10**9) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "centerc": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent*": "{{ '%*d' % (1000000000, 1) }}",
    "fmtf": "{{ '%1000000000d'|format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format nest": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "double": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "double~": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "double set": "{% set ns = namespace(x='aaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}{{ ns.x|length }}",
    "double join": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}{{ ns.x|length }}",
    "double join2": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ''.join([ns.x, ns.x]) %}{% endfor %}{{ ns.x|length }}",
    "double list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "dag": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "dag dict": "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}",
    "dag tuple key": "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "dag dictf": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x == ns.x }}",
    "macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macro2": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro3": "{% macro f(n) %}{% if n %}{% set a = f(n-1) or f(n-1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1,2,3,4,5,6,7,8,9] recursive %}{{ loop([1,2,3,4,5,6,7,8,9]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "lipsum": "{{ lipsum(10**9) }}",
    "lipsum2": "{% for i in range(99999) %}{{ lipsum(5) }}{% endfor %}",
    "indent": "{{ 'a\\nb'|indent(10**9) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list|length }}",
    "slice": "{{ [1]|slice(10**9)|list|length }}",
    "round": "{{ 5|round(-1000000000) }}",
    "round2": "{{ 5|round(1000000000, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big')|length }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9)|length }}",
    "replace": "{% set a = 'a' * 99999 %}{{ a.replace('a', a)|length }}",
    "replacef": "{% set a = 'a' * 99999 %}{{ a|replace('a', a)|length }}",
    "translate": "{% set a = 'a' * 99999 %}{{ a.translate({97: a})|length }}",
    "joind": "{% set a = 'a' * 99999 %}{{ a.join(a)|length }}",
    "joinf": "{% set a = 'a' * 99999 %}{{ a|join(a)|length }}",
    "join refs": "{% set a = 'a' * 99999 %}{{ ([a] * 99999)|join|length }}",
    "join gen": "{% set a = 'a' * 99999 %}{{ range(99999)|map('replace', 'x', a)|join|length }}",
    "sum": "{% set a = [1] * 9999 %}{{ ([a] * 9999)|sum(start=[])|length }}",
    "wordwrap": "{% set a = 'a' * 99999 %}{{ a|wordwrap(1, wrapstring=a)|length }}",
    "urlize": "{{ ('http://a.b' * 20000)|urlize }}",
    "striptags": "{{ ('<!--' * 99999)|striptags }}",
    "striptags loop": "{% for i in range(99999) %}{{ ('<!--' * 4999)|striptags }}{% endfor %}",
    "percent many": "{% set a = 'a' * 99999 %}{{ ('%(a)s' * 19999) % {'a': a} }}",
    "format many": "{% set a = 'a' * 99999 %}{{ ('{0}' * 19999).format(a) }}",
    "static": "{% for i in range(99999) %}" + "x" * 99999 + "{% endfor %}",
    "static macro": "{% macro f() %}" + "x" * 99999 + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "slice copy": "{% set a = [1] * 9999 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "contains": "{% set a = range(99999)|list %}{% for i in range(99999) %}{% if -1 in a %}{% endif %}{% endfor %}",
    "deep parens": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "deep list": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep if": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "deep for": "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
    "deep not": "{{ " + "not " * 50000 + "1 }}",
    "deep filt": "{{ 1" + "|abs" * 50000 + " }}",
    "intstr": "{{ 10**4300 }}",
    "cycler": "{% set c = cycler(1) %}{% for i in range(99999) %}{% for j in range(99) %}{{ c.next() }}{% endfor %}{% endfor %}",
    "changed": "{% set a = range(99999)|list %}{% for i in range(99999) %}{{ loop.changed(a) }}{% endfor %}",
    "selectattr": "{% for i in range(99999) %}{{ range(99999)|select('odd')|list|length }}{% endfor %}",
    "select lazy": "{% for i in range(99999) %}{{ range(99999)|select('odd')|first }}{% endfor %}",
    "tojson indent": "{{ [[[[1]]]]|tojson(indent=1000000000) }}",
    "capitalize": "{% set a = 'ß' * 99999 %}{% for i in range(99999) %}{{ a.upper()|length }}{% endfor %}",
    "sort": "{% for i in range(99999) %}{{ range(9999)|sort|length }}{% endfor %}",
    "map map": "{{ range(99999)|map('string')|map('center', 99999)|list|length }}",
    "filter block": "{% filter center(1000000000) %}a{% endfilter %}",
    "filter chain": "{% set a='a'*9999 %}{% for i in range(99999) %}{% filter upper %}{{ a }}{% endfilter %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_is_refused_within_a_second_for(name):
    def refused():
        with pytest.raises(HeadEditError) as caught:
            render(BOMBS[name], {"q": "hello"}, "data.json, record 1")
        assert str(caught.value).startswith("data.json, record 1: the prompt cannot be made: ")
        assert len(str(caught.value)) < 1000

    assert fastest_of_three(refused) < 1.0


PLAIN = [
    "{{ q.text }}{{ n + 1 }}{{ n * 2 - 3 / 2 }}{{ 7 // 2 ** 2 % 3 }}{{ -n }}{{ 'a' * n }}{{ [1, 2] * 2 }}",
    "{% for c in choices %}{{ loop.index }}. {{ c | trim }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for k, v in q | dictsort %}{{ k }}={{ v }};{% else %}none{% endfor %}{{ q | tojson }}",
    "{% for a in range(3) recursive %}{{ a }}{% if a %}{{ loop(range(a)) }}{% endif %}{% endfor %}",
    "{% macro f(a, b=2) %}[{{ a }}|{{ b }}|{{ caller() }}]{% endmacro %}{% call f(3, b=4) %}x{% endcall %}",
    "{% set x = namespace(n=0) %}{% for c in choices if c != 'b' %}{% set x.n = x.n + c | length %}{% endfor %}{{ x.n }}",
    "{{ choices[::-1] }}{{ choices[1:] | join('/') }}{{ choices[0][0] }}{{ q['text'][1:4] }}{{ (1, 'a', none) }}",
    "{{ '%s:%05.1f|%-4s|%%' % (q.text, n, 'a') }}{{ '{0:>6}|{a!r}'.format(n, a='b') }}{{ '{a}'.format_map({'a': n}) }}",
    "{{ choices | map('upper') | list }}{{ choices | select('in', ['a']) | list }}{{ choices | batch(2, '-') | list }}",
    "{{ choices | sort | unique | join }}{{ [3, 1] | sum }}{{ [[1], [2]] | sum(start=[]) }}{{ choices | slice(2) | list }}",
    "{{ 'a\\nb' | indent(2, true) }}|{{ 'abc' | center(9) }}|{{ 'x y z' | wordwrap(3) }}|{{ 'a b' | replace(' ', '_') }}",
    "{{ 3.14159 | round(2) }}{{ 'a,b'.split(',') }}{{ ','.join(choices) }}{{ 'aXa'.replace('X', 'y').ljust(6) ~ '|' }}",
    "{% filter upper %}{{ q.text }}{% endfilter %}{% set y %}<{{ n }}>{% endset %}{{ y ~ y ~ 1.5 ~ none ~ true }}",
    "{{ 1 < n <= 3 and 'a' in choices or not q }}{{ n is odd }}{{ q is mapping }}{{ n == 3.0 }}{{ choices == ['a', 'b'] }}",
    "{{ lipsum is callable }}{{ dict(a=1, **{'b': 2}) }}{{ cycler('a', 'b').next() }}{{ q.get('none', 'd') }}{{ q.items() | list }}",
    "{{ choices | first }}{{ choices | last }}{{ choices | length }}{{ 'ß' | upper }}{{ '<a>' | e }}{{ '<a>' | striptags }}",
    "{% block b %}{{ n }}{% endblock %}{{ self.b() }}{% if missing is defined %}a{% else %}b{% endif %}{{ [] | default('x', true) }}\n",
    "{% for group in [{'k': 1}, {'k': 2}, {'k': 1}] | groupby('k') %}{{ group.grouper }}{{ group.list }}{% endfor %}",
]


@pytest.mark.parametrize("template", PLAIN)
def test_a_template_renders_as_in_plain_jinja(template):
    fields = {"q": {"text": "Which one?", "b": 1}, "n": 3, "choices": ["a", "b"]}
    plain = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    assert render(template, fields, "here") == plain.from_string(template).render(fields)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ q.__class__.__mro__ }}", "unsafe"),
        ("{{ q | attr('__class__') }}", "unsafe"),
        ("{{ '{0.__class__}'.format(q) }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ {}[[1]] }}", "no element"),
    ],
)
def test_a_fault_of_a_template_is_named(template, message):
    with pytest.raises(HeadEditError, match=f"here: the prompt cannot be made: .*{message}"):
        render(template, {"q": "a"}, "here")


def test_a_task_whose_template_is_too_long_is_refused_when_it_is_read():
    options = {"name": "t", "answer": "a", "template": "plain"}
    assert Task(prompt="x" * LONGEST, **options).prompt
    for prompt in (
        "x" * (LONGEST + 1),
        "{{ " + "[" * 9999 + "]" * 9999 + " }}",
        "{% for i in q %}" * 40 + "{% endfor %}" * 40,
    ):
        with pytest.raises(HeadEditError, match=r"template.*(has 50,001 characters|nested too deeply)"):
            Task(prompt=prompt, **options)


def test_a_long_record_is_rendered():
    text = "word " * 400_000
    assert render("{% for w in q.split() %}{{ w }} {% endfor %}", {"q": text}, "here") == text.strip() + " "
    rows = [{"k": i, "v": "x"} for i in range(3000)]
    assert len(render("{{ rows | tojson }}{{ rows | map(attribute='v') | join }}", {"rows": rows}, "here")) > 50_000


def test_a_record_that_its_template_makes_too_much_of_is_left_out_of_an_evaluation(tmp_path):
    from headedit.demo import MODEL_FOLDER
    from headedit.hf.loading import load_model

    task = Task(name="t", prompt="{{ ('a ' * n) }}=", answer="a", template="plain", max_new_tokens=4, num_beams=1)
    rows = [{"n": 3, "a": "x"}, {"n": 10**12, "a": "x"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    model = load_model(str(MODEL_FOLDER), device="cpu")
    with pytest.raises(HeadEditError, match=r"record 2: the prompt cannot be made: .* too much text"):
        evaluate(model, task, data=tmp_path / "rows.json", progress=False)
    report = evaluate(model, task, data=tmp_path / "rows.json", progress=False, skip_broken=True)
    assert (report.n, len(report.left_out)) == (1, 1)
