"""Imports point down. The rooms, and what each may know, are in `shared/house-style.md`; this is the part we have."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache

import click
import pytest

from source_code import MODULES, PACKAGE, find_imports, name_of, parse_module, room_of

# From the ground up; rooms of one floor do not import each other.
FLOORS = [
    {"version", "renamed_modules"},
    {"errors"},
    {"artifact_files"},
    {"types", "times"},
    {"machine"},
    {"files", "sharing", "suggest"},
    {"webhook", "storage"},
    {"settings"},
    {"spec"},
    {"knn"},
    {"kernels"},
    {"sources", "engines", "runners", "stores"},
    {"eligibility", "overfetch"},
    {"table"},
    {"measure"},
    {"evaluation"},  # not `evaluate`: that is the verb
    {"join"},
    {"publishing"},  # not `publish`: that is the verb, nearcast.publish()
    {"serve"},
    {"ads"},
    {"service"},
    {"history", "figures"},
    {"monitoring", "replaying", "tuning", "advising", "updating"},  # not `advise`: that is the verb
    {"api"},  # the verbs of the command line, from Python: it calls the rooms below, and the command line calls it
    {"dashboard", "spark"},  # nearcast.spark: the join of DataFrames
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# library: the one file that may import it, inside a function
HEAVY = {
    "faiss": "engines/faiss_common.py",
    "pandas": None,
    "polars": None,
    "deltalake": "sources/delta_table.py",
    "duckdb": "sources/duckdb_query.py",
    "lance": "sources/lance_table.py",
    "pyiceberg": "sources/iceberg_table.py",
    "lark": "eligibility/parse.py",
    "scipy": None,
    "torch": None,
    "redis": "stores/redis_connection.py",
    "boto3": "stores/dynamodb_table.py",
    "botocore": "stores/dynamodb_table.py",
    "lmdb": "stores/lmdb_environment.py",
    "fastapi": "service/openapi.py",
    "starlette": "service/app.py",
    "orjson": "service/responses.py",
    "prometheus_client": "service/metrics.py",
    "uvicorn": "service/server.py",
    "uvloop": "service/server.py",
    "httptools": None,
    "matplotlib": "figures.py",
    "onnxruntime": "join/rank_model.py",
    "optuna": "tuning/optimize.py",
    "obstore": "storage/object_storage.py",
    "opentelemetry": "service/tracing.py",
    "pyspark": "runners/spark_runner.py",
    "ray": "runners/ray_runner.py",
}

# the two runners that are an engine's client, and what they may import beside the standard library
RUNNER_ENGINES = {"runners/spark_runner.py": {"pyspark", "pyarrow"}, "runners/ray_runner.py": {"ray"}}


@cache
def imports(path):
    """(dotted module, line, whether it is only for the type checker, whether it is inside a function)."""
    found = []
    for node, typing_only, inside in find_imports(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module == "nearcast":
            names = [f"nearcast.{alias.name}" for alias in node.names]
        else:
            assert node.level == 0, f"{name_of(path)} line {node.lineno} imports relatively"
            names = [node.module]
        found += [(name, node.lineno, typing_only, inside) for name in names]
    return sorted(found)


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR_OF), "a new room needs a place in FLOORS"


def test_imports_point_down():
    faults = []
    for path in MODULES:
        room = room_of(path)
        for name, line, _, _ in imports(path) if room not in ("__init__", "__main__") else ():
            other = name.split(".")[1] if name.startswith("nearcast.") else room
            if name == "nearcast":
                faults.append(f"{name_of(path)} line {line} imports the whole package")
            elif other != room and FLOOR_OF[other] >= FLOOR_OF[room]:
                faults.append(f"{name_of(path)} line {line}: {room} must not import {other}")
    assert faults == []


def test_the_package_itself_imports_only_its_version_and_old_names_before_it_is_used():
    eager = [n for n, _, typing_only, inside in imports(PACKAGE / "__init__.py") if not typing_only and not inside]
    assert [name for name in eager if name.startswith("nearcast")] == ["nearcast.renamed_modules", "nearcast.version"]


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_is_imported_in_one_file_and_inside_a_function(library):
    found = {
        (name_of(path), inside or typing_only)
        for path in MODULES
        for name, _, typing_only, inside in imports(path)
        if name.split(".")[0] == library
    }
    home = HEAVY[library]
    assert found == ({(home, True)} if home else set())


@pytest.mark.parametrize("room", ["errors", "types", "machine", "files", "knn", "runners"])
def test_the_lower_rooms_know_numpy_and_the_standard_library_only(room):
    allowed = set(sys.stdlib_module_names) | {"numpy", "nearcast", "psutil", "threadpoolctl"}
    for path in MODULES:
        if room_of(path) == room:
            also = RUNNER_ENGINES.get(name_of(path), set())
            assert {name.split(".")[0] for name, *_ in imports(path)} <= allowed | also, name_of(path)


FIGURES = {f"measure/{name}.py" for name in ("drift", "measures", "profile", "recall", "slices", "tally", "ties")}


def test_figures_and_runners_know_no_engines_and_no_files():
    found = {name_of(path): path for path in MODULES if name_of(path) in FIGURES or room_of(path) == "runners"}
    assert found.keys() >= FIGURES
    allowed = set(sys.stdlib_module_names) | {"numpy", "nearcast"}
    preflight = {"machine", "version", "kernels", "settings", "suggest"}  # a runner looks at its host, at no data
    for name, path in found.items():
        assert {imported.split(".")[0] for imported, *_ in imports(path)} <= allowed | RUNNER_ENGINES.get(
            name, set()
        ), name
        rooms = {imported.split(".")[1] for imported, *_ in imports(path) if imported.startswith("nearcast.")}
        also = preflight if room_of(path) == "runners" else set()
        assert rooms <= {"measure", "runners", "types", "errors", "knn", "sources"} | also, name


JUDGES = {  # that may know how lists do by labels: what measures, audits, records and shows them
    *("join/inputs.py", "join/validate_run.py", "join/run.py", "join/measure_labels.py"),
    *("publishing/audit.py", "publishing/audit_values.py", "publishing/label_rules.py", "publishing/publication.py"),
    *("publishing/targets.py", "history/record.py", "api/evaluations.py", "api/publications.py", "cli/evaluate.py"),
    *("join/diff.py", "api/comparing.py", "monitoring/explain_changes.py"),  # two snapshots by the same labels
}


def test_nothing_that_decides_lists_or_learns_imports_the_reader_of_labels():
    readers = {
        name_of(path)
        for path in MODULES
        for name, *_ in imports(path)
        if name.startswith("nearcast.evaluation") and room_of(path) != "evaluation"
    }
    assert readers <= JUDGES


def test_every_module_says_what_it_holds():
    for path in MODULES:
        docstring = ast.get_docstring(parse_module(path))
        assert docstring, name_of(path)
        lines = docstring.splitlines()
        assert lines[0].endswith((".", ":")) or len(lines) > 1, name_of(path)


def test_every_folder_of_modules_is_a_package_with_a_docstring():
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def python(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_nearcast_imports_nothing_heavy():
    names = ("faiss", "pandas", "polars", "pyarrow", "numpy", "pydantic", "psutil", "duckdb")
    assert python(f"import sys, nearcast; print(*[n for n in {names} if n in sys.modules])") == []


def test_a_join_of_arrays_imports_no_table_library_but_arrow():
    code = """
import sys, numpy, nearcast
nearcast.knn_join(numpy.eye(3), numpy.eye(3), k=1)
print(*[n for n in ("faiss", "pandas", "polars", "duckdb") if n in sys.modules])
"""
    assert python(code) == []


SERVICE = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client")

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_without_the_optional_libraries_everything_imports_and_joins_exactly():
    modules = [
        "nearcast." + name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in MODULES
        if name_of(path) not in ("__init__.py", "__main__.py") and not name_of(path).endswith("/__main__.py")
    ]
    code = (
        BLOCK.format(blocked=("faiss", "pandas", "polars", "duckdb", "scipy", "redis", *SERVICE))
        + f"""
import importlib
for name in {modules!r}:
    importlib.import_module(name)
import numpy, nearcast
found = nearcast.knn_join(numpy.eye(3), numpy.eye(3), k=1)
print(*found.positions.ravel())
"""
    )
    assert python(code) == ["0", "1", "2"]


@pytest.mark.parametrize("engine", ["faiss-ivf", "faiss-hnsw"])
def test_without_faiss_the_error_of_its_engines_names_the_extra(engine):
    code = (
        BLOCK.format(blocked=("faiss",))
        + f"""
import numpy, nearcast
try:
    nearcast.knn_join(numpy.eye(3), numpy.eye(3), k=1, engine={engine!r})
except nearcast.errors.MissingExtraError as error:
    assert "pip install 'nearcast[faiss]'" in str(error), error
    assert isinstance(error.__cause__, ImportError)
    print(error.exit_code)
"""
    )
    assert python(code) == ["9"]


@pytest.mark.parametrize(
    "library",
    [
        *("fastapi", "uvicorn"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("httptools", "orjson", "prometheus_client")),
    ],
)
def test_without_a_library_of_the_service_its_error_names_the_extra_before_any_store_is_opened(library):
    code = (
        BLOCK.format(blocked=(library,))
        + """
import nearcast.errors
from nearcast.cli import cli
try:
    cli.main(["serve", "--store", "lmdb:nowhere"], standalone_mode=False)
except nearcast.errors.MissingExtraError as error:
    assert "pip install 'nearcast[serve]'" in str(error), error
    assert isinstance(error.__cause__, ImportError)
    print(error.exit_code)
"""
    )
    assert python(code) == ["9"]


def test_every_command_is_listed_and_is_called_like_its_module():
    from nearcast.cli import COMMANDS, cli

    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    assert {name: command.name for name, command in commands.items()} == {name: name for name in COMMANDS}
    modules = {path.stem: path.read_text(encoding="utf-8") for path in (PACKAGE / "cli").glob("*.py")}
    with_commands = {name for name, text in modules.items() if f"def {name}(" in text and "@click.command" in text}
    with_commands |= {name for name, text in modules.items() if "@click.group" in text} - {"__init__"}
    assert with_commands == set(COMMANDS)
    assert all(text.endswith(".") and len(text) < 65 for text in COMMANDS.values())


def test_help_and_version_wait_for_no_library_but_the_parser():
    code = """
import contextlib, io, sys
from nearcast.cli import cli
for word in ("--help", "--version"):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main([word])
print(*[name for name in ("numpy", "pyarrow", "pydantic", "rich") if name in sys.modules])
"""
    assert python(code) == []


def test_the_errors_are_a_tree_with_an_exit_code_each():
    from nearcast import errors

    classes = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, errors.NearcastError) for kind in classes)
    assert len({kind.exit_code for kind in classes}) == len(classes)
    assert 0 not in {kind.exit_code for kind in classes}
    for kind in classes:
        assert kind.__name__ in errors.__doc__
