"""Jinja templates that anyone may have written, rendered within bounds: Jinja's sandbox, with a budget.

The sandbox keeps a template from reaching Python; the budget keeps it from taking all time or memory. Loops, calls,
operators, filters, comparisons, literals and all text are charged to the budget, and what a single operation of Python
would blow up, such as ``'a' * 10**9``, is checked before it is done. What is rendered is what Jinja renders.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from headedit.errors import HeadEditError
from headedit.io.budget import TooMuchWork, check_number, current, spending
from headedit.io.sandbox_costs import FILTERS, METHODS, OPERATORS, SIZED, TEXTS, counted, formatted

LONGEST = 50_000
"""Characters of a template."""

_COMPARING = (
    "==",
    "!=",
    "eq",
    "ne",
    "equalto",
    "lt",
    "<",
    "lessthan",
    "le",
    "<=",
    "gt",
    ">",
    "greaterthan",
    "ge",
    ">=",
)
_MACRO = 5  # steps of calling one
_OWNERS = (str, bytes, int, list, tuple, dict)
_CHARGED, _ITERATED, _STEP = "_charged", "_iterated", "_step"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, in which every operation is charged to the budget of the rendering."""

    intercepted_binops = frozenset(OPERATORS)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, optimized=False, finalize=_finalize)
        self.globals["lipsum"] = _bounded_lipsum(self.globals["lipsum"])
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_CHARGED: _charge, _ITERATED: _iterate, _STEP: _step}
        self.tests |= {name: _bounded_test(self.tests[name]) for name in (*_COMPARING, "in") if name in self.tests}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Adds a filter, or puts it in the place of one."""
        self.filters[name] = _bounded_filter(name, function)

    def template(self, text: str, what: str) -> Template:
        """A template, ready to be rendered.

        Args:
            text: the template.
            what: names it in messages.

        Raises:
            HeadEditError: it is too long or too deeply nested.
            jinja2.TemplateSyntaxError: it is not a template.
        """
        if len(text) > LONGEST:
            raise HeadEditError(
                f"{what}: has {len(text):,} characters, more than the {LONGEST:,} that a template may have."
            )
        with spending(text):
            try:
                return self.from_string(text)
            except (RecursionError, MemoryError, SyntaxError, TooMuchWork, OverflowError) as error:
                if isinstance(error, SyntaxError):
                    raise HeadEditError(f"{what}: its blocks are nested too deeply ({error.msg}).") from None
                raise HeadEditError(f"{what}: is nested too deeply ({type(error).__name__}).") from None

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Charging().visit(source), *args, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator, if the budget has it."""
        OPERATORS[operator](left, right)
        result = self.binop_table[operator](left, right)
        _charge(result)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item or attribute of an object."""
        if isinstance(argument, tuple):
            current().spend_on(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """For ``str.format`` and ``str.format_map`` a function that does the same within bounds; None for others."""
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else formatted(value.__self__, wrapped)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, if the budget has it."""
        budget = current()
        if isinstance(__obj, Macro):
            budget.spend(_MACRO)
        else:
            budget.spend_on([args, kwargs])
            args = _before_method(__obj, args, kwargs)
        return _charge(super().call(__context, __obj, *args, **kwargs))


class _Charging(NodeTransformer):
    """Puts charges into a template: on what is looped over, compared, joined and listed, and first in every body."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block | nodes.FilterBlock):
            texts = sum(len(found.data) for part in node.body for found in [part, *part.find_all(nodes.TemplateData)]
                        if isinstance(found, nodes.TemplateData))  # fmt: skip
            node.body.insert(0, nodes.ExprStmt(_call(_STEP, nodes.Const(texts)), lineno=node.lineno))
        if isinstance(node, nodes.For):
            node.iter = _call(_ITERATED, node.iter)
        elif isinstance(node, nodes.Compare):
            node.expr = _call(_CHARGED, node.expr)
            for operand in node.ops:
                operand.expr = _call(_CHARGED, operand.expr)
        elif isinstance(node, nodes.Concat):
            node.nodes = [_call(_CHARGED, part) for part in node.nodes]
        elif isinstance(node, nodes.Pair):
            node.key = _call(_CHARGED, node.key)
        return _call(_CHARGED, node) if _makes_a_value(node) else node


def _makes_a_value(node: nodes.Node) -> bool:
    stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
    literal = isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and not stored
    return literal or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice))


def _call(name: str, node: nodes.Node) -> nodes.Expr:
    if name == _CHARGED and isinstance(node, nodes.Const | nodes.TemplateData):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _charge(value: Any) -> Any:
    current().spend_on(value)
    return value


def _iterate(value: Any) -> Any:
    if isinstance(value, SIZED):
        current().spend(len(value))
    return value


@pass_context
def _finalize(context: Context, value: Any) -> Any:  # with the context, for Jinja then computes nothing beforehand
    return _charge(value)


def _step(characters: int) -> str:
    current().spend(1, characters)
    return ""


def _before_method(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call, after the checks on a method that could blow up what it is called on."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", None)
    check = METHODS.get(str(name)) if isinstance(owner, _OWNERS) else None
    if isinstance(owner, TEXTS):
        current().spend(1, len(owner) // 16)
    return args if check is None else check(owner, args, kwargs)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    check = FILTERS.get(name)
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or the environment come first

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if len(given) > passed:
            if check is None:
                current().spend_on([given[passed:], kwargs])
            else:
                given[passed] = check(given[passed], given[passed + 1 :], kwargs)
        return counted(function(*given, **kwargs))

    return bounded


def _bounded_test(function: Any) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any) -> Any:
        for value in args:
            current().spend_on(value)
        return function(*args)

    return bounded


def _bounded_lipsum(function: Any) -> Callable[..., str]:
    def lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
        check_number(n, 50)
        check_number(max, 500)
        return str(function(n, html, min, max))

    return lipsum
