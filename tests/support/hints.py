"""Every hint that Brain prints, and the tests that follow each as it was printed.

`in_the_code()` reads the hints out of Brain's code. A test that follows some of them is decorated
with `follows(…)`, which names them as the code has them, with `{}` for what Brain fills in. It
hands each hint that it follows to `paste`, `shell` or `followed`; the decorator checks that they
are the named ones. tests/docs/test_hints.py compares the two sides: a new hint needs a test.
"""

import ast
import functools
import inspect
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from tests.support import ROOT, script
from tests.support.patience import PATIENCE
from tests.support.postgres import _readable

Test = TypeVar("Test", bound=Callable[..., Any])

SOURCE: Final = ROOT / "src" / "brain"

# What a test does with a hint

_followed: list[str] = []
"""By the test that is running."""


def follows(*hints: str, all_of_them: bool = True) -> Callable[[Test], Test]:
    """The test follows these hints; at least one of them if it is a case of several."""

    def check() -> None:
        for text in _followed:
            assert any(_matches(hint, text) for hint in hints), f"not named by follows(): {text}"
        missing = [hint for hint in hints if not any(_matches(hint, text) for text in _followed)]
        assert _followed, "follows nothing"
        assert not (all_of_them and missing), f"not followed: {missing}"

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def wrapper(*args: Any, **given: Any) -> None:
            _followed.clear()
            test(*args, **given)
            check()

        @functools.wraps(test)
        async def awaiting(*args: Any, **given: Any) -> None:
            _followed.clear()
            await test(*args, **given)
            check()

        return cast("Test", awaiting if inspect.iscoroutinefunction(test) else wrapper)

    return decorate


def _matches(hint: str, text: str) -> bool:
    """Whether the text contains the hint, whatever Brain filled in."""
    return re.search(".*".join(map(re.escape, hint.split("{}"))), text, re.DOTALL) is not None


def followed(hint: str) -> str:
    """The test does what the hint says, because it is no command."""
    _followed.append(hint)
    return hint


def paste(hint: str, url: str) -> None:
    """Paste it into psql. The SELECT after it fails if the hint lacks a final semicolon."""
    followed(hint)
    done = subprocess.run(
        [_readable(18) / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url],
        input=f"{hint}\nSELECT 1;\n",
        env={"PATH": os.environ["PATH"], "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{hint}\n{done.stderr}"


def shell(hint: str, then: str = "", **settings: str) -> str:
    """Paste it into a shell where `brain` is on the path, and `then` behind it. Returns the
    output.
    """
    if hint:
        followed(hint)
    kept = {name: text for name, text in os.environ.items() if not name.startswith("BRAIN_")}
    done = subprocess.run(
        ["sh", "-ec", f"set -a\n{hint}\n{then}\n"],
        env=kept | {"PATH": f"{script.folder()}:{kept['PATH']}"} | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{hint}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


# What the code prints

_COMMAND = re.compile(
    r"BRAIN_[A-Z_]+"
    r"|(?:\bbrain|\{\}) (?:serve|init-db|doctor|psql|watch|wait|demo|token)\b"
    r"|\b(?:ALTER|CREATE|DROP|GRANT|ROLLBACK PREPARED) [A-Z{]"
    r"|\bpg_(?:terminate_backend|reload_conf|drop_replication_slot)\("
    r"|; --"
    r"|\b(?:pip install|apt install|npx|psql|openssl|chmod|ulimit)\b"
)
"""Of a sentence that tells somebody to run or to set something."""

_CALLS: Final = {"StreamUnavailable": 1, "SlotBlocked": 1, "Rejected": 1, "Finding": 4}
"""Calls, and which of their positional arguments is a hint."""

_NAMES: Final = re.compile("hint|by_sqlstate", re.IGNORECASE)
"""Of constants and functions that hold and return hints."""

_DESCRIPTIONS: Final = {"_setting", "Option", "Argument", "Typer", "RejectionType"}
"""Calls whose arguments describe a setting, an option or a rejection, and are no hints."""


@dataclass(frozen=True)
class Hint:
    place: str
    """The module and the line."""
    text: str
    """As the code has it, with `{}` for what Brain fills in."""


def in_the_code() -> list[Hint]:
    return [hint for path in sorted(SOURCE.rglob("*.py")) for hint in _hints_of(path)]


def in_the_tests() -> dict[str, str]:
    """The hints that tests follow, each with the name of such a test."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "follows(" in text else ():
            for each in getattr(node, "decorator_list", ()):
                if isinstance(each, ast.Call) and _name(each.func) == "follows":
                    name = f"{path.relative_to(ROOT)}::{getattr(node, 'name', '')}"
                    found |= {_text(argument) or "": name for argument in each.args}
    return found


def _hints_of(path: Path) -> Iterator[Hint]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    skipped = {each for node in nodes for each in _skipped(node)}
    hints = {each for node in nodes for each in _hints(node)}
    for node in nodes:
        text = None if node in skipped else _text(node)
        if not text or not (" " in text.strip() or (node in hints and "=" in text)):
            continue
        if node in hints or _COMMAND.search(text):
            yield Hint(f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}", text.strip())


def _skipped(node: ast.AST) -> Iterable[ast.AST]:
    match node:
        case ast.Expr(value=ast.Constant()):  # a docstring
            return [node.value]
        case ast.JoinedStr():  # its parts, because it is read as a whole
            return [inner for inner in ast.walk(node) if inner is not node]
        case ast.Dict():  # of hints: the keys are not
            return [inner for key in node.keys if key for inner in ast.walk(key)]
        case ast.Call() if _name(node.func) in _DESCRIPTIONS:
            return ast.walk(node)
    return ()


def _hints(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes in places where a hint stands, whatever it says."""
    match node:
        case ast.Call():
            name = _name(node.func)
            if name in _CALLS:
                yield from _below(node.args[_CALLS[name] : _CALLS[name] + 1])
            if name == "append" and "hint" in _name(getattr(node.func, "value", node)):
                yield from _below(node.args)
            yield from _below(each.value for each in node.keywords if each.arg == "hint")
        case ast.Assign(targets=[ast.Tuple() as names], value=ast.Tuple() as values):
            for name_, value in zip(names.elts, values.elts, strict=False):
                if _NAMES.search(_name(name_)):
                    yield from _below([value])
        case ast.Assign(value=value) | ast.AnnAssign(value=value) if value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_NAMES.search(_name(target)) for target in targets):
                tuples = [each for each in ast.walk(value) if isinstance(each, ast.Tuple)]
                yield from _below([each.elts[-1] for each in tuples] or [value])
        case ast.FunctionDef() | ast.AsyncFunctionDef() if _NAMES.search(node.name):
            returns = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
            yield from _below(
                each.elts[-1] if isinstance(each, ast.Tuple) else each for each in returns if each
            )


def _below(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        yield from ast.walk(node)


def _name(node: ast.AST) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _text(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"\{\w+\}", "{}", text)
        case ast.JoinedStr(values=values):
            return "".join(_text(each) or "{}" for each in values)
    return None
