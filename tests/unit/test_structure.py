"""The structure of the package: names occur once and tell something, functions take few arguments, rooms make no cycle.

Each rule has a list of present exceptions, by name. The lists only shrink: a new name is never added, and an exception
that is gone does no harm until its row is deleted.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nearcast
from servers import free_port
from source_code import MODULES, PACKAGE, find_imports, list_nodes, name_of, parse_module, room_of

MOST_PARAMETERS = 7

# Verbs of `nearcast.__all__`: their arguments are the settings of a command, and they are called by name.
PUBLIC_VERBS = {"knn_join", *nearcast.__all__}

Function = ast.FunctionDef | ast.AsyncFunctionDef

REPEATED_CLASSES: set[str] = set()
MANY_PARAMETERS: set[str] = {
    "ads",
}
REPEATED_FILES: set[str] = set()
PARTICIPLES: set[str] = {
    "checked",
    "estimated",
    "merged",
    "removed",
}

# Participles that do not end in -ed.
IRREGULAR = {
    *("built", "chosen", "done", "drawn", "found", "given", "gone", "held", "hidden", "kept", "known", "left"),
    *("lost", "made", "met", "meant", "said", "seen", "sent", "shown", "spoken", "spent", "taken", "told", "withdrawn"),
    *("written",),
}
VERBS_IN_ED = {"embed", "exceed", "feed", "need", "proceed", "seed", "shed", "succeed"}


@cache
def functions() -> list[tuple[Path, Function, ast.AST]]:
    """All functions and methods, with what they are defined in."""
    return [
        (path, node, parent)
        for path in MODULES
        for parent in list_nodes(path)
        if isinstance(parent, ast.stmt | ast.Module | ast.ExceptHandler | ast.match_case)
        for node in ast.iter_child_nodes(parent)
        if isinstance(node, Function)
    ]


def decorators(node: Function) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def is_command(node: Function) -> bool:
    return any(text.startswith("click.") for text in decorators(node))


def parameters(node: Function) -> int:
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_participle(name: str) -> bool:
    word = name.strip("_")
    return word in IRREGULAR or (word.endswith("ed") and "_" not in word and word not in VERBS_IN_ED)


def is_protocol(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)


def test_the_name_of_a_class_occurs_once():
    places = defaultdict(list)
    for path in MODULES:
        for node in list_nodes(path):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{name_of(path)} line {node.lineno}")
    repeated = {name: where for name, where in places.items() if len(where) > 1 and name not in REPEATED_CLASSES}
    assert repeated == {}, "two classes with one name: give one of them a noun of its own"


def test_a_function_takes_at_most_seven_arguments():
    many = {
        f"{name_of(path)} {node.name}": parameters(node)
        for path, node, _ in functions()
        if parameters(node) > MOST_PARAMETERS
        and not is_command(node)
        and node.name not in PUBLIC_VERBS | MANY_PARAMETERS
    }
    assert many == {}, "more than seven arguments: values that travel together are a frozen dataclass"


def test_the_name_of_a_file_occurs_once():
    places = defaultdict(list)
    for path in MODULES:
        if path.name not in ("__init__.py", "__main__.py", "base.py") and room_of(path) != "cli":
            places[path.stem].append(name_of(path))
    repeated = {stem: where for stem, where in places.items() if len(where) > 1 and stem not in REPEATED_FILES}
    assert repeated == {}, "two modules with one name: searching for one finds the other"


def test_a_function_is_named_by_a_verb_and_not_by_a_participle():
    found = {
        f"{name_of(path)} {node.name}"
        for path, node, parent in functions()
        if is_participle(node.name)
        and not any("property" in text for text in decorators(node))
        and not is_protocol(parent)
        and node.name not in PUBLIC_VERBS | PARTICIPLES
    }
    assert found == set(), "name the function by its verb and object: `_checked` -> `_validate_rows`"


def test_rooms_make_no_cycle():
    below: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for node, _, _ in find_imports(path):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            below[room_of(path)] |= {name.split(".")[1] for name in names if name.startswith("nearcast.")}
    rooms = {room: others - {room} for room, others in below.items() if room not in ("__init__", "__main__")}
    while free := {room for room, others in rooms.items() if not others & rooms.keys()}:
        rooms = {room: others for room, others in rooms.items() if room not in free}
    assert rooms == {}, "these rooms import each other in a circle"


def imported_at_once(path: Path) -> Iterator[str]:
    """The modules of nearcast that importing this one imports, by their files."""
    waiting: list[ast.AST] = [parse_module(path)]
    while waiting:
        node = waiting.pop()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif not isinstance(node, Function) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            waiting += ast.iter_child_nodes(node)
        for name in names:
            parts = name.split(".")[1:] if name.startswith("nearcast.") else []
            files = [PACKAGE.joinpath(*parts[:-1], f"{parts[-1]}.py")] if parts else []
            files += (
                [PACKAGE.joinpath(*parts, "__init__.py"), PACKAGE.joinpath(*parts[:-1]).with_suffix(".py")]
                if parts
                else []
            )
            yield from (name_of(file) for file in files if file.is_file())


def test_modules_make_no_cycle_so_any_of_them_can_be_imported_first():
    below = {name_of(path): set(imported_at_once(path)) - {name_of(path)} for path in MODULES}
    while free := {name for name, others in below.items() if not others & below.keys()}:
        below = {name: others for name, others in below.items() if name not in free}
    assert below == {}, "these modules import each other in a circle"


def test_the_rules_recognize_what_they_forbid():
    tree = ast.parse("def _checked(a, b, c, d, *, e, f, g, h): ...\nclass Box:\n  def told(self, a): ...")
    checked, box = tree.body
    assert isinstance(checked, ast.FunctionDef)
    assert isinstance(box, ast.ClassDef)
    told = box.body[0]
    assert isinstance(told, ast.FunctionDef)
    assert (parameters(checked), parameters(told)) == (8, 1)
    assert [is_participle(name) for name in ("_checked", "told", "need", "read_rows", "rounded_up")] == [
        *(True, True, False, False, False),
    ]


def test_no_test_is_a_race_with_the_machine():
    """An end in a moment may have passed before it is written; a port that was let go may be taken."""
    races = {
        "let_expire": re.compile(r"until=[\w.]+\(\) \+ [0-9]?\.[0-9]"),
        "servers.free_port": re.compile(r"\.bind\(\(\w+, 0\)\)"),
    }
    found = [
        f"{path.name}: {line.strip()} (use {way_out})"
        for path in Path(__file__).parents[1].rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        for way_out, race in races.items()
        if race.search(line)
    ]
    assert found == []
    assert len({free_port() for _ in range(20)}) == 20, "a port is given once"
