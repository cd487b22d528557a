import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SILENCED = 4
"""Complaints of mypy that are silenced today: whoever needs another takes one away, or raises this with a reason."""


def silenced(text):
    """The lines of a source that silence the type checker."""
    return [line for line in text.splitlines() if re.search(r"#\s*type:\s*ignore", line)]


def is_reasoned(line):
    """Whether a line names the error that it silences, and says why."""
    return re.search(r"# type: ignore\[[a-z-]+\]  # \S", line) is not None


def test_what_the_type_checker_says_is_rarely_silenced():
    """A complaint that is silenced may be a fault that nobody sees."""
    sources = [ROOT / "halotile.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
    found = [line for source in sources for line in silenced(source.read_text(encoding="utf-8"))]
    assert len(found) <= SILENCED
    assert [line for line in found if not is_reasoned(line)] == []


@pytest.mark.parametrize("line", ["a = b  # type: ignore", "a = b  # type: ignore[arg-type]", "a = b #type:ignore"])
def test_a_silenced_line_without_a_reason_is_found(line):
    """The control of the above."""
    assert silenced(line) == [line]
    assert not is_reasoned(line)


@pytest.mark.parametrize("package", ["pipeline", "flows"])
def test_each_package_says_that_it_is_typed(package):
    """Without the mark, type checkers of those who import it take all of it for Any (PEP 561)."""
    assert (ROOT / package / "py.typed").is_file()


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Those of a module and of its public classes, the classes' own `__init__` and the like among them."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (each for each in node.body if isinstance(each, ast.FunctionDef) and is_public(each.name))
        elif isinstance(node, ast.FunctionDef) and is_public(node.name):
            yield node


def is_public(name: str) -> bool:
    """Whether others call it."""
    return not name.startswith("_") or name.endswith("__")


def untyped(text: str) -> list[str]:
    """Public functions of a source whose parameters or result are Any somewhere."""
    return [
        function.name
        for function in public_functions(ast.parse(text))
        for part in [function.args, function.returns]
        if part is not None and any(is_any(node) for node in ast.walk(part))
    ]


def is_any(node: ast.AST) -> bool:
    """Whether a part of an annotation is Any, also where it is written as a text."""
    names = [getattr(node, "id", ""), getattr(node, "attr", "")]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        names += re.findall(r"\w+", node.value)
    return "Any" in names


@pytest.mark.parametrize("room", ["core", "stages"])
def test_what_others_call_takes_and_gives_values_of_known_types(room):
    """Where a signature says Any, the type checker looks away on both of its sides."""
    sources = sorted((ROOT / "pipeline" / room).rglob("*.py"))
    assert sources
    assert {str(path): names for path in sources if (names := untyped(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "def f(a: Any) -> int: ...",
        "def f(a: int, *rest: tuple[Any, ...]) -> int: ...",
        "def f(a: int, *, b: 'dict[str, Any]') -> int: ...",
        "def f(a: int) -> dict[str, typing.Any]: ...",
        "class A:\n    def f(self, a: Callable[[Any], int]) -> int: ...",
    ],
)
def test_any_in_a_signature_is_found(text):
    """The control of the above; what is private is its module's own affair."""
    assert untyped(text) == ["f"]
    assert untyped(text.replace("def f", "def _f")) == []
