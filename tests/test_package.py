"""What is shipped: the wheel and the sdist hold all that is needed and nothing else, and the sdist builds by itself."""

from __future__ import annotations

import ast
import importlib.util
import os
import pydoc
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import embridge
import embridge.allocator
from embridge.allocator import errors
from embridge.workers.transfer.engines import mooncake

ROOT = Path(__file__).parents[1]
PACKAGES = ("allocator", "workers", "pipeline")
NOT_SOURCES = shutil.ignore_patterns(
    *(".git", ".venv", ".build", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info", "*.so", "__pycache__")
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


class Built(NamedTuple):
    """The sdist made from these sources, and the wheel made from that sdist."""

    sdist: Path
    wheel: Path

    def shipped(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def metadata(self, name: str) -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(f"embridge-{VERSION}.dist-info/{name}").decode()


def build(what: str, source: Path, target: Path) -> Path:
    """Call the build backend in a source tree, as pip does without isolation; what it compiles is soon compiled."""
    compiler = target / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(target)],
        cwd=source,
        env={**os.environ, "CC": str(compiler), "LDSHARED": f"{compiler} -shared"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return target / result.stdout.split()[-1]


def why_not_built() -> str:
    """What building needs, and is not here: a wheel is tried where there is no compiler, too."""
    if shutil.which("cc") is None:
        return "a C compiler, `cc`"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"the headers of {Path(sys.executable).name}"
    return "" if importlib.util.find_spec("setuptools") and importlib.util.find_spec("wheel") else "setuptools, wheel"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if "TESTED_EMBRIDGE_SITE" in os.environ and (missing := why_not_built()):
        pytest.skip(f"nothing can be built here: there is no {missing}")
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_SOURCES)
    sdist = build("build_sdist", folder / "tree", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    return Built(sdist, build("build_wheel", source, folder))


class TestPackage:
    """One build for all of them."""

    def test_the_wheel_is_for_every_python_from_3_11_on_and_for_this_platform(self, built: Built) -> None:
        assert built.wheel.name.startswith(f"embridge-{VERSION}-cp311-abi3-linux_")
        assert "Tag: cp311-abi3-linux_" in built.metadata("WHEEL")
        assert "Root-Is-Purelib: false" in built.metadata("WHEEL")

    def test_the_wheel_holds_every_module_the_core_and_its_types(self, built: Built) -> None:
        folders = {"": "embridge", "demo/": "examples/demo", **{f"{package}/": package for package in PACKAGES}}
        modules = {
            f"embridge/{place}{path.relative_to(ROOT / folder)}"
            for place, folder in folders.items()
            for path in (ROOT / folder).rglob("*.py")
        }
        typing = {
            *(f"embridge/{place}py.typed" for place in folders if place != "demo/"),
            "embridge/allocator/_core.pyi",
        }
        files = {"embridge/workers/status_page.html"}
        shipped = {name for name in built.shipped() if ".dist-info/" not in name}
        assert shipped == modules | typing | files | {"embridge/allocator/_core.abi3.so"}

    def test_the_wheel_names_its_command_its_licence_and_what_it_needs(self, built: Built) -> None:
        assert "embridge = embridge.pipeline.cli:main" in built.metadata("entry_points.txt")
        assert any(name.endswith("licenses/LICENSE") for name in built.shipped())
        needed = {
            line.split(" ", 1)[1].split(">")[0]
            for line in built.metadata("METADATA").splitlines()
            if line.startswith("Requires-Dist") and "extra" not in line
        }
        assert needed == {"torch", "numpy", "posix-ipc", "pyzmq", "msgspec", "click", "rich"}

    def test_the_sdist_holds_the_sources_of_the_core_the_tests_and_the_documents_and_nothing_built(
        self, built: Built
    ) -> None:
        with tarfile.open(built.sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        core = {
            str(path.relative_to(ROOT)) for pattern in ("*.c", "*.h") for path in (ROOT / "allocator").rglob(pattern)
        }
        assert any(name.endswith(".h") for name in core)
        assert core <= names
        assert {
            "pyproject.toml",
            "setup.py",
            "Makefile",
            "README.md",
            "LICENSE",
            "tests/conftest.py",
            "docs/invariants.md",
        } <= names
        assert not {name for name in names if name.endswith((".so", ".pyc"))}
        listed = subprocess.run(
            ["sh", "-c", "git ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert {name for name in listed.stdout.split("\n") if name} <= names  # none where this is no checkout

    def test_the_core_of_the_wheel_exports_its_entry_and_nothing_else(self, built: Built, tmp_path: Path) -> None:
        """And loads, without the package around it."""
        with zipfile.ZipFile(built.wheel) as archive:
            core = Path(archive.extract("embridge/allocator/_core.abi3.so", tmp_path))
        code = (
            "import ctypes, importlib.machinery as m, importlib.util as u, sys\n"
            "loader = m.ExtensionFileLoader('embridge.allocator._core', sys.argv[1])\n"
            "core = u.module_from_spec(u.spec_from_loader(loader.name, loader))\n"
            "loader.exec_module(core)\n"
            "assert core.Mapping and core.__file__ == sys.argv[1], core\n"
        )
        result = subprocess.run(
            [sys.executable, "-I", "-c", code, str(core)], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr

    def test_the_core_of_the_wheel_needs_no_newer_glibc_than_the_release_says(
        self, built: Built
    ) -> None:
        """By the versions of the symbols that it takes from there, as `auditwheel` reads them."""
        with zipfile.ZipFile(built.wheel) as archive:
            core = archive.read("embridge/allocator/_core.abi3.so")
        needed = {int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", core)}
        (said,) = re.findall(r"^MANYLINUX := manylinux_2_(\d+)_", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert needed
        assert max(needed) <= int(said)

    def test_the_metadata_are_such_as_an_index_takes(self, built: Built) -> None:
        found = Metadata.from_email(built.metadata("METADATA"), validate=True)
        assert found.name == "embridge"
        assert found.description_content_type == "text/markdown"
        assert "Programming Language :: Python :: 3.14" in (found.classifiers or [])

    def test_the_version_stands_in_one_place_and_the_changelog_begins_with_it(self, built: Built) -> None:
        assert f"\nVersion: {VERSION}\n" in built.metadata("METADATA")
        first = re.search(r"^## (\S+)", (ROOT / "docs" / "changelog.md").read_text(), re.MULTILINE)
        assert first is not None
        assert first[1] == VERSION


def wanted() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by extra; "" is what is always needed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}


@pytest.mark.parametrize("extra", ["mooncake", "mooncake-non-cuda"])
def test_an_extra_brings_no_mooncake_that_the_node_then_refuses(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R13: the least version stands in pyproject.toml, in the engine, and in the documents; it is one."""
    (wish,) = wanted()[extra]
    assert wish.name in mooncake.MODULES
    least = ".".join(map(str, mooncake.LEAST_VERSION))
    assert str(wish.specifier) == f">={least}"
    assert f"Mooncake must be {least} or newer" in " ".join((ROOT / "docs" / "deploying.md").read_text().split())
    monkeypatch.setattr(mooncake, "module_version", lambda: f"{wish.name} {least}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert mooncake.why_unavailable() == ""


def test_what_this_tree_is_tested_with_is_what_it_asks_for() -> None:
    """Each package that is asked for has a version in constraints.txt, within its range; the lowest Python is
    one, too.
    """
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for extra, wishes in wanted().items():
        for wish in wishes:
            if canonicalize_name(wish.name) == "mooncake-transfer-engine":
                continue  # the one for CUDA; pinned is its twin
            assert wish.specifier.contains(pins[canonicalize_name(wish.name)]), f"{extra}: {wish}"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["requires-python"] == ">=3.11"
    assert settings["tool"]["ruff"]["target-version"] == "py311"
    assert 'LIMITED_API = "0x030B0000"' in (ROOT / "setup.py").read_text()
    assert '"cp311"' in (ROOT / "setup.py").read_text()


def test_the_package_under_test_is_the_one_that_is_meant() -> None:
    """This checkout; or, under `make wheelcheck`, the wheel that it has installed."""
    meant = Path(os.environ.get("TESTED_EMBRIDGE_SITE", ROOT))
    assert Path(embridge.allocator.__file__).is_relative_to(meant)
    assert Path(embridge.allocator._core.__file__).is_relative_to(meant)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("how", [["-c", "import {}"], ["-m", "{}"]], ids=["import", "-m"])
def test_from_the_root_of_the_sources_a_folder_is_no_package(package: str, how: list[str]) -> None:
    """Where the current folder is on the path, a bare name finds the folder: the error says which name to use."""
    command = [sys.executable, *(part.format(package) for part in how)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    said = result.stderr.strip().splitlines()[-1]
    assert (
        f"{package!r} is the folder of embridge.{package}, imported by its bare name; import embridge.{package}" in said
    )


@pytest.mark.skipif("TESTED_EMBRIDGE_SITE" in os.environ, reason="there the sources hide the wheel's package")
def test_from_the_root_of_the_sources_the_package_is_found_by_its_full_name() -> None:
    code = "import embridge.allocator as a, embridge as e; print(a.__name__, e.PipelineConfig.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.split() == ["embridge.allocator", "PipelineConfig"], result.stderr


class TestDoor:
    """`import embridge` is the public API, and nothing is loaded before it is used."""

    def test_each_name_is_there_and_is_shown(self) -> None:
        assert sorted(set(embridge.__all__)) == sorted(embridge.__all__)
        for name in embridge.__all__:
            assert getattr(embridge, name) is not None
        assert set(embridge.__all__) <= set(dir(embridge))
        text = pydoc.plain(pydoc.render_doc(embridge))
        assert not [name for name in embridge.__all__ if name not in text]

    def test_who_checks_types_sees_the_same_names(self) -> None:
        """And no others: a module's `__getattr__` that it saw would give it whatever is asked for."""
        tree = ast.parse(Path(embridge.__file__).read_text())
        (block,) = (
            node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        assert not any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
        seen = {
            f"{node.module}.{alias.asname}"
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert seen == {f"{module}.{name}" for module, names in embridge._NAMES.items() for name in names}

    def test_every_exception_that_the_package_defines_for_callers_is_among_them(self) -> None:
        """All of `embridge.allocator.errors`, but what only messages between nodes raise."""
        defined = {name for name, it in vars(errors).items() if isinstance(it, type) and issubclass(it, Exception)}
        assert defined - set(embridge.__all__) == {"ProtocolError"}

    def test_a_name_that_is_not_there_is_an_error_that_says_where_to_look(self) -> None:
        with pytest.raises(AttributeError, match=r"no attribute 'atach'; see dir\(embridge\)"):
            getattr(embridge, "atach")  # noqa: B009

    def test_the_version_is_the_one_that_is_installed(self) -> None:
        assert embridge.__version__ == metadata.version("embridge")

    def test_the_import_alone_loads_nothing(self) -> None:
        code = (
            "import sys, embridge; dir(embridge); print([name for name in sys.modules if name.startswith('embridge.')])"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert result.stdout == "[]\n", result.stderr

    def test_python_m_is_the_command(self) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "embridge", "--version"], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.stdout == f"embridge, version {embridge.__version__}\n", result.stderr


def test_an_environment_that_was_half_made_is_no_python_s(tmp_path: Path) -> None:
    """As of a Python without ensurepip, which fails when its own link is there."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "pythons", tmp_path / ".ci")
    (tmp_path / "it.whl").touch()
    python = tmp_path / "python-of-this-test"
    half = 'mkdir -p "$3/bin"\nln -s /bin/false "$3/bin/python"\nexit 1\n'
    python.write_text(f'#!/bin/sh\ntest "$1" = -c && exit\n{half}')
    python.chmod(0o755)
    command = [tmp_path / ".ci" / "pythons", tmp_path / "it.whl", python]
    for _ in range(2):
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1] == f"NOT TESTED with {python}: it makes no environment"


def test_a_python_that_is_no_command_is_looked_for_with_pyenv(tmp_path: Path) -> None:
    """There a command of that name may be, which says that it is not the current version."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "pythons", tmp_path / ".ci")
    (tmp_path / "it.whl").touch()
    for folder, does in (("shims", "exit 127"), ("versions/3.99.1/bin", 'test "$1" = -c')):
        (tmp_path / folder).mkdir(parents=True)
        (python := tmp_path / folder / "python3.99").write_text(f"#!/bin/sh\n{does}\n")
        python.chmod(0o755)
    environ = {**os.environ, "PYENV_ROOT": str(tmp_path), "PATH": f"{tmp_path / 'shims'}:{os.environ['PATH']}"}
    for name, why in (("python3.99", "it makes no environment"), ("python3.98", "it is not installed")):
        command = [str(tmp_path / ".ci" / "pythons"), str(tmp_path / "it.whl"), name]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.splitlines()[-1] == f"NOT TESTED with {name}: {why}"
