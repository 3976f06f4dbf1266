"""What the sources may import, call and say."""

from __future__ import annotations

import ast
import functools
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import trees
from support.trees import nodes_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("allocator", "workers", "pipeline")  # each may import those before it
ABOVE = ("examples", "embridge")  # which may import all of them
SOURCES = sorted(path for folder in (*PACKAGES, *ABOVE) for path in (ROOT / folder).rglob("*.py"))


NAMED_TUPLE = ("_asdict", "_make", "_replace")  # which are public


@functools.cache
def parsed() -> list[tuple[Path, ast.Module]]:
    return [(path.relative_to(ROOT), trees.parsed(path)) for path in SOURCES]


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of all that is imported anywhere in a module, for type checking, too."""
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they cross"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 40
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {*PACKAGES, *ABOVE}


def test_imports_run_one_way() -> None:
    """pipeline -> workers -> allocator."""
    for path, tree in parsed():
        for name in imports(tree):
            parts = name.split(".")
            if parts[0] == "embridge" and path.parts[0] in PACKAGES:
                assert parts[1] in PACKAGES[: PACKAGES.index(path.parts[0]) + 1], f"{path} imports {name}"


FORKED = {"work_of", "_role_of", "_teller_of"}  # of `workers/start.py`: what the launcher calls before it forks


def test_what_a_process_of_a_node_runs_was_imported_before_it_was_forked() -> None:
    """A process that is started again runs the code with which its node was launched, whatever is installed by then."""
    late = []
    for path, tree in parsed():
        if path.parts[0] not in ("workers", "allocator") or path == Path("workers/start.py"):
            continue
        late += [f"{path}: {name}" for name in imported_in_functions(tree) if name.startswith("embridge.")]
    (start,) = [tree for path, tree in parsed() if path == Path("workers/start.py")]
    functions = [node for node in start.body if isinstance(node, ast.FunctionDef) and node.name not in FORKED]
    late += [f"{function.name}: {name}" for function in functions for name in imported_in_functions(function)]
    assert not late


def imported_in_functions(tree: ast.AST) -> list[str]:
    """What functions import when they are called."""
    functions = (node for node in nodes_of(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [name for function in functions for name in imports(ast.Module(function.body, []))]


def module_of(path: Path) -> str:
    """The full name of the module in a file of the sources."""
    parts = list(path.with_suffix("").parts)
    if parts[0] == "examples":
        parts = parts[1:]
    if parts[0] != "embridge":
        parts = ["embridge", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Every module of ours with those that it imports, wherever in it: at its top, in a function, or for type checking
    alone.
    """
    trees = {module_of(path): tree for path, tree in parsed()}
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        graph[module] = set()
        for name in imports(tree):
            while name not in trees and "." in name:
                name = name.rpartition(".")[0]
            graph[module] |= {name} & (trees.keys() - {module})
    return graph


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same of rooms: the folders in `pipeline`, `workers` and so on; a module that lies in none is one of
    its own.
    """
    packages = {name.rpartition(".")[0] for name in graph}

    def room(name: str) -> str:
        of = name if name in packages else name.rpartition(".")[0]
        return of if of.count(".") > 1 else name

    found: dict[str, set[str]] = {room(name): set() for name in graph}
    for name, imported in graph.items():
        found[room(name)] |= {room(other) for other in imported} - {room(name)}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Those that reach themselves, together with all that they reach and that reach them."""
    reached = {}
    for name in graph:
        seen: set[str] = set()
        todo = list(graph[name])
        while todo:
            if (one := todo.pop()) not in seen:
                seen.add(one)
                todo += graph[one]
        reached[name] = seen
    found = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return sorted(map(list, found))


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "c"}}) == [["b", "c"]]
    graph = {
        "embridge.p.one.x": {"embridge.p.two.y"},
        "embridge.p.two.z": {"embridge.p.one.w"},
        "embridge.p.alone": {"embridge.p.one"},
    }
    graph |= {"embridge.p.two.y": set(), "embridge.p.one.w": set(), "embridge.p.one": set(), "embridge.p.two": set()}
    assert circles(graph) == []
    assert circles(rooms(graph)) == [["embridge.p.one", "embridge.p.two"]]
    assert "embridge.p.alone" in rooms(graph)


@pytest.mark.parametrize("of", ["files", "rooms"])
def test_no_import_goes_in_a_circle(of: str) -> None:
    """Also none that is hidden in a function, or that only a type checker sees."""
    graph = import_graph()
    assert len(graph) == len(SOURCES)
    assert circles(graph if of == "files" else rooms(graph)) == []


def test_nothing_private_of_a_client_is_used_in_another_file() -> None:
    """What begins with an underscore is of the file that defines it."""
    for path, tree in parsed():
        if path.parts[:2] not in {("pipeline", room) for room in ("client", "scheduler", "ranks")}:
            continue
        used: dict[str, int] = {}
        own = {node.name for node in nodes_of(tree) if isinstance(node, ast.FunctionDef)}
        for node in nodes_of(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    own.add(node.attr)
                else:
                    used[node.attr] = node.lineno
        foreign = {name: line for name, line in used.items() if name not in own and name not in NAMED_TUPLE}
        assert foreign == {}, path


def test_our_own_packages_are_imported_by_their_full_names() -> None:
    """A bare `import workers` may find somebody else's."""
    for path, tree in parsed():
        for name in imports(tree):
            assert name.split(".")[0] not in PACKAGES, f"{path} imports {name}"


def test_nothing_that_runs_what_it_reads_is_used() -> None:
    """P16: no pickle, marshal or shelve, no eval or exec, no torch.load."""
    for path, tree in parsed():
        for name in imports(tree):
            assert name.split(".")[0] not in {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}, (
                f"{path}: {name}"
            )
        for node in nodes_of(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile"}, f"{path}:{node.lineno} calls {node.func.id}"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "torch.load", f"{path}:{node.lineno}"


def test_who_uses_zeromq_starts_no_thread() -> None:
    """D19: its sockets belong to the one thread of their process; only the wire, and who guards it, make any, and
    `embridge bench`, which is measured beside it.
    """
    users = {}
    for path, tree in parsed():
        names = set(imports(tree))
        if any(name.split(".")[0] == "zmq" for name in names):
            users[str(path)] = {name.split(".")[0] for name in names} & {
                "threading",
                "_thread",
                "concurrent",
                "asyncio",
                "multiprocessing",
            }
    wire = ("dealers", "loop", "port", "reader", "teller", "zap")
    bench = {"pipeline/cli/bench_runs.py": {"multiprocessing"}}
    assert users == {"workers/keys.py": set()} | {f"workers/wire/{name}.py": set() for name in wire} | bench


def test_the_environment_is_read_in_one_place() -> None:
    """But for the variables of Mooncake and numpy, which they read themselves: they are set, and checked, where those
    are started. Those of a service manager are taken out of it. An engine whose command line has no place for options
    of an integration has them in a variable.
    """
    for path, tree in parsed():
        if path in (
            Path("embridge/integrations/engine_settings.py"),
            Path("embridge/integrations/sglang/options.py"),
            Path("pipeline/config.py"),
            Path("pipeline/node/launcher_start.py"),
            Path("pipeline/node/service_manager.py"),
            Path("workers/transfer/engines/mooncake.py"),
        ):
            continue
        for node in nodes_of(tree):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert name not in {"environ", "getenv", "environb"}, f"{path}:{node.lineno} reads the environment"


def test_the_wall_clock_decides_nothing_in_a_transfer() -> None:
    """P14: a jump of it changes nothing.

    The launcher reads it, for an incarnation, the discovery server, to refuse one of days to come, and who makes spans
    or traces of requests.
    """
    for path, tree in parsed():
        if path in (
            Path("pipeline/node/claim.py"),
            Path("workers/discovery/server.py"),
            Path("embridge/integrations/opentelemetry.py"),
            Path("pipeline/inspection/stories.py"),
        ):
            continue
        for node in nodes_of(tree):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"time.time", "time.time_ns", "datetime.now"}, f"{path}:{node.lineno}"


OF_REAL_THINGS = {
    "pipeline/join.py": "it waits for a node to answer",
    "pipeline/ranks/follower.py": "it looks whether its node lives; no request has a time",
    "pipeline/inspection/observe.py": "one look, from outside",
    "pipeline/inspection/stories.py": "one look, from outside, and the time of day of it",
    "pipeline/node/launcher.py": "its loop, and processes that it waits for; who looks at their beats is given a clock",
    "pipeline/node/claim.py": "the wall clock, which orders incarnations",
    "pipeline/node/ports.py": "it waits for a port that is to come free",
    "pipeline/node/launch.py": "it waits for a process",
    "pipeline/node/ending.py": "it waits for a process",
    "pipeline/spawn.py": "it waits for processes",
    "pipeline/node/supervisor.py": "it waits for processes to end; beats it looks at by the clock it is given",
    "workers/transfer/engines/mooncake.py": "an engine, with threads and deadlines of its own",
    "workers/wire/reader.py": "sockets",
    "workers/web/process.py": "the loop around answers, which are given the clock",
    "workers/discovery/registrar.py": "its loop, and its exchanges over HTTP",
    "workers/stderr.py": "the thread that writes",
    "workers/wire/loop.py": "sockets, and the loop around them; a role is told the time of its step",
    "workers/start.py": "the loop around a role, which is told the time of its step",
    "workers/wire/zap.py": "sockets",
    "workers/wire/dealers.py": "sockets",
    "workers/wire/teller.py": "sockets",
    "embridge/integrations/opentelemetry.py": "the time of day, of requests that have ended",
}
"""Modules that read the clock themselves, and of what."""
BESIDE_A_CLOCK = {"pipeline/node/supervisor.py": {"stop"}}
"""Functions that do, in a module where one is given."""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in nodes_of(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def reads_clock(node: ast.AST) -> bool:
    called = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    found = {
        it.attr
        for it in called
        if isinstance(it, ast.Attribute) and isinstance(it.value, ast.Name) and it.value.id == "time"
    }
    return any(name.removesuffix("_ns") in {"monotonic", "perf_counter", "time", "clock_gettime"} for name in found)


def knows_clock(tree: ast.Module) -> bool:
    """Whether somebody is given a clock there, or takes another's."""
    names = {node.attr for node in nodes_of(tree) if isinstance(node, ast.Attribute)}
    return bool(names & {"clock", "_clock"})


def test_the_clock_is_injected() -> None:
    """P14: who has a clock reads no other; who reads one itself is a loop, or looks at what no test can step."""
    trees = {str(path): tree for path, tree in parsed() if path.parts[1] not in ("cli", "demo")}
    found = {path: tree for path, tree in trees.items() if reads_clock(tree)}
    assert set(found) == set(OF_REAL_THINGS)
    beside = {
        path: {it.name for it in functions(tree) if reads_clock(it)}
        for path, tree in found.items()
        if knows_clock(tree)
    }
    assert beside == BESIDE_A_CLOCK
    for path, tree in trees.items():
        assert not any(name.startswith("time.") for name in imports(tree)), (
            f"{path}: what it imports of time by name is not found here"
        )


def test_the_word_for_a_transfer_that_goes_on_is_resume() -> None:
    forbidden = "continu" + "ation"
    files = [*SOURCES, *(path for suffix in ("*.c", "*.h", "*.pyi") for path in (ROOT / "allocator").rglob(suffix))]
    for path in files:
        assert forbidden not in path.read_text().lower(), path


CHILDREN = [
    "start",
    "wire.loop",
    "bootstrap.encode",
    "bootstrap.language",
    "bootstrap.registrations",
    "poller.encode",
    "poller.language",
    "transfer.encode",
    "transfer.engines.shm",
    "discovery.registrar",
]


def test_a_process_of_a_node_does_not_import_what_it_does_not_use() -> None:
    """Torch costs a second and hundreds of megabytes a process; numpy half of all that the others import, and 20 MB;
    the parser of letters, which comes with the versions of packages, 10 ms; asyncio, which ZeroMQ's helpers bring, 15.
    """
    heavy = {"torch", "numpy", "rich", "click"}
    children = [name for name in CHILDREN if name != "discovery.registrar"]
    lines = ["import embridge.pipeline.node.launcher", *(f"import embridge.workers.{name}" for name in children)]
    unused = {*heavy, "importlib.metadata", "email", "aiohttp", "asyncio", "ssl"}
    code = "\n".join(["import sys", *lines, f"assert not (found := {unused} & set(sys.modules)), found"])
    code += f"\nimport embridge.workers.discovery.registrar; assert not (found := {heavy} & set(sys.modules)), found"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_the_context_of_torch_is_the_one_that_the_launcher_uses() -> None:
    """Where torch brought its own, a node would have to be forked from that."""
    import torch.multiprocessing

    assert torch.multiprocessing.get_context("fork") is multiprocessing.get_context("fork")


def test_asking_for_the_package_alone_imports_no_torch() -> None:
    """`launch` and the command line stay quick."""
    code = "import sys, embridge, embridge.pipeline.node.launch, embridge.pipeline.config\n"
    code += "assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_a_package_that_is_imported_by_its_bare_name_says_so(tmp_path: Path) -> None:
    for package in PACKAGES:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {package}"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        assert f"import embridge.{package}" in result.stderr


def test_a_file_has_at_most_450_lines_of_at_most_120_bytes() -> None:
    """What is longer has two purposes; what is wider nobody reads beside something else, and tools count bytes."""
    folders = [ROOT / folder for folder in ("allocator", "bench", "tests")]
    others = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".pyi", ".c", ".h")]
    texts = {path.relative_to(ROOT): path.read_text().splitlines() for path in {*SOURCES, *others}}
    longest = {path: len(lines) for path, lines in texts.items() if path.suffix != ".pyi"}
    assert {str(path): count for path, count in longest.items() if count > 450} == {}
    assert _wide_lines(texts) == []


def test_what_says_how_it_is_built_and_checked_has_lines_of_at_most_120_bytes() -> None:
    files = [ROOT / name for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt", "MANIFEST.in")]
    files += ROOT.glob(".ci/*")
    assert _wide_lines({path.relative_to(ROOT): path.read_text().splitlines() for path in files}) == []


def _wide_lines(texts: dict[Path, list[str]]) -> list[str]:
    return [f"{path}:{n}" for path in texts for n, line in enumerate(texts[path], 1) if len(line.encode()) > 120]


def test_a_class_has_at_most_20_public_methods() -> None:
    """Properties are none: they are read like attributes."""
    seen = {}
    for _, tree in parsed():
        for node in nodes_of(tree):
            if isinstance(node, ast.ClassDef):
                methods = [
                    it.name
                    for it in node.body
                    if isinstance(it, ast.FunctionDef)
                    and not it.name.startswith("_")
                    and not any(
                        isinstance(mark, ast.Name) and mark.id.endswith("property") for mark in it.decorator_list
                    )
                ]
                if len(methods) > 20:
                    seen[node.name] = len(methods)
    assert seen == {}
