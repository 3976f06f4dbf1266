"""What a test depends on, found from what it imports: the files from which its own process, and those that it starts,
have their code.

`Sources.of` begins with the test file and the `conftest.py` files of its folders (the fixtures that each test has, and
those that are asked for), and follows what `imports.py` finds, over all Python files here. The processes of a node are
found so, too: `pipeline/node/launcher_start.py` has the launcher in the text that starts it, and all else is imported
from there. Besides, a file depends on

- the module that defines a name, where a package loads its names when they are first used (`embridge/__init__.py`);
- `setup.py` and all C files of the folder, for a module in C;
- the files that a file of the tests names in backquotes by their paths: a model names what it is a model of.

A file is *doubtful* when it imports by a name that it computes or, outside of the product, has the path of a file of
ours, from which it may read any other. `reads_by_path` in pyproject.toml says what it reads, a line each; without one
it depends on every file that there is.

What a file says is kept under `.build` by the digest of its text, for to parse them all takes seconds.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from support.imports import ANY, BELOW, Content, Import, Part, content_of

FILE: Final = Path(".build", "imports.json")
READER: Final = "tests/support/imports.py"  # what it finds is kept, until it is another
NOT_OURS: Final = {"__pycache__", "build", "dist"}


class Kept(NamedTuple):
    """What a file says; the digest is of it and of the reader."""

    digest: str
    content: Content


def split_line(name: str, line: str) -> tuple[str, tuple[str, ...]]:
    """A line of a setting in pyproject.toml: what it is about, and the words behind the colon. Raises ValueError."""
    about, separator, words = line.partition(":")
    if not (separator and about.strip() and words.split()):
        raise ValueError(f"{name}: {line!r} is not of the form '<files>: <sources> ...'")
    return about.strip(), tuple(words.split())


class Sources:
    """Of all tests under one root, as its files are now; made anew after a change."""

    def __init__(self, root: Path, reads_by_path: Iterable[str] = ()) -> None:
        """`reads_by_path`: lines `<file>: <pattern> <pattern> ...`.

        Raises ValueError where one is not of that form, or where a pattern has no file: it was renamed, perhaps.
        """
        self._root = root
        self._declared: dict[str, set[str]] = {}
        for file, patterns in (split_line("reads_by_path", line) for line in reads_by_path):
            self._declared[file] = self.matching(patterns, f"reads_by_path: {file}")
        self._folders = self._packages()
        self._heads = {name.partition(".")[0] for name in self._folders}
        self._product = tuple(f"{folder}/" for folder in self._folders.values())
        self._modules: dict[str, frozenset[str] | None] = {}
        self._there: dict[str, frozenset[str]] = {}
        self._bases: dict[str, list[str]] = {}
        self._digests: dict[str, str] = {}
        self._known: dict[str, Kept] = {}
        self._direct: dict[str, frozenset[str]] = {}
        self._reached: dict[str, frozenset[str]] = {}
        self._reader = "".join(self.digest(file) for file in self._existing(READER))
        try:
            self._kept = msgspec.json.decode((root / FILE).read_bytes(), type=dict[str, Kept])
        except (OSError, msgspec.MsgspecError):
            self._kept = {}

    def matching(self, patterns: Iterable[str], about: str) -> set[str]:
        """The files that these patterns match. Raises ValueError where one has none."""
        found: set[str] = set()
        for pattern in patterns:
            files = {self._name(path) for path in self._root.glob(pattern) if path.is_file()}
            if not files:
                raise ValueError(f"{about}: no file is called {pattern}; name what is depended on")
            found |= files
        return found

    def existing(self, files: Iterable[str]) -> set[str]:
        """Those that there are."""
        return {name for file in files for name in self._existing(file)}

    def digest(self, file: str) -> str:
        """Of what is in a file."""
        if file not in self._digests:
            self._digests[file] = hashlib.sha256((self._root / file).read_bytes()).hexdigest()
        return self._digests[file]

    def of(self, test: str, *, with_conftests: bool = True) -> frozenset[str]:
        """The files on which a test file depends, by their paths from the root; itself is one.

        Without `conftest.py` files, what these have for every test is left out; fixtures that it asks for are not.
        """
        conftests = self._conftests(test)
        found = set(self._reach(test))
        for file in conftests if with_conftests else ():
            found |= self._reach(file)
        fixtures = {file: self._content(file).fixtures for file in conftests}
        given: set[str] = set()
        while True:  # one that is given asks for others, and brings files that do
            ours = [self._content(file) for file in found if file.endswith(".py") and not self._is_product(file)]
            parts = [it.part for it in ours]
            parts += [of[name] for of in fixtures.values() for name in given & of.keys()]
            asked = {name for part in parts for name in part.asked}
            new = {name for of in fixtures.values() for name in of if name in asked or ANY in asked} - given
            if not new:
                return frozenset(found | self.existing(name for it in ours for name in it.named))
            for file, of in fixtures.items():
                for name in new & of.keys():
                    for other in self._imported(of[name], file):
                        found |= self._reach(other)
            given |= new

    def is_doubtful(self, file: str) -> bool:
        """Whether what it depends on cannot be found from what it imports."""
        content = self._content(file)
        return content.computes_modules or (content.has_paths and not self._is_product(file))

    def keep(self) -> None:
        """Write down what was read, for the next time."""
        if self._known.items() <= self._kept.items():
            return
        path = self._root / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(self._known))
        new.replace(path)

    # ---- from file to file

    def _reach(self, file: str) -> frozenset[str]:
        if file not in self._reached:
            found, waiting = {file}, [file]
            while waiting:
                new = self._depends_on(waiting.pop()) - found
                found |= new
                waiting += new
            self._reached[file] = frozenset(found)
        return self._reached[file]

    def _depends_on(self, file: str) -> frozenset[str]:
        if file not in self._direct:
            self._direct[file] = frozenset(self._look(file)) if file.endswith(".py") else frozenset()
        return self._direct[file]

    def _look(self, file: str) -> set[str]:
        found = self._imported(self._content(file).part, file)
        if self.is_doubtful(file):
            found |= self._declared.get(file) or self.everything
        return found

    @cached_property
    def everything(self) -> frozenset[str]:
        """All files but what was built from others."""
        found = set()
        for folder, folders, files in os.walk(self._root):
            folders[:] = [it for it in folders if it not in NOT_OURS and not it.startswith(".") and ".egg" not in it]
            found |= {self._name(Path(folder, it)) for it in files if not it.endswith((".so", ".pyc"))}
        return frozenset(found)

    def _content(self, file: str) -> Content:
        if file not in self._known:
            digest, kept = self.digest(file) + self._reader, self._kept.get(file)
            self._known[file] = kept if kept and kept.digest == digest else Kept(digest, self._parsed(file))
        return self._known[file].content

    def _parsed(self, file: str) -> Content:
        try:
            return content_of((self._root / file).read_text(), is_conftest=file.endswith("conftest.py"))
        except (SyntaxError, ValueError):
            return Content(Part(), computes_modules=True)  # nobody knows

    # ---- from names to files

    def _imported(self, part: Part, file: str) -> set[str]:
        found: set[str] = set()
        for it in part.imports:
            names = it.module.lstrip(".")
            num_up = len(it.module) - len(names)
            folder = file.rpartition("/")[0]
            if num_up:
                found |= self._follow(_up(folder, num_up - 1), names.split(".") if names else [], it.name)
            elif names.partition(".")[0] in self._heads:
                found |= self._follow_product(names.split("."), it.name)
            elif (base := self._base_of(folder, names.partition(".")[0])) is not None:
                found |= self._follow(base, names.split("."), it.name)
        return found

    def _follow_product(self, names: list[str], name: str | None) -> set[str]:
        """As `_follow`, from the last of the packages whose folders are known; each on the way to it runs, too."""
        found: set[str] = set()
        for num in range(len(names), 0, -1):
            folder = self._folders.get(".".join(names[:num]))
            if folder is not None:
                is_last = not found
                found |= self._follow(folder, names[num:] if is_last else [], name if is_last else None)
        return found

    def _follow(self, folder: str, names: list[str], name: str | None) -> set[str]:
        """The files of a module, of the packages around it, and of a name in it."""
        found = set(self._package(folder))
        rest = [*names, *([name] if name else [])]
        while rest and (files := self._module(folder, rest[0])) is not None:
            found |= files
            folder, rest = f"{folder}/{rest[0]}".lstrip("/"), rest[1:]
        if rest == [BELOW]:
            found |= {self._name(path) for path in (self._root / folder).rglob("*.py")}
        elif rest:
            for package in self._package(folder):
                found |= self._lazily(package, rest[0])
        return found

    def _lazily(self, package: str, name: str) -> set[str]:
        """The files of a name that a package loads when it is first used."""
        lazy = self._content(package).lazy
        names = lazy.keys() if name.startswith("_") or name == ANY else {name} & lazy.keys()
        return self._imported(Part({Import(lazy[it]) for it in names}), package)

    def _package(self, folder: str) -> frozenset[str]:
        return self._existing(f"{folder}/__init__.py")

    def _module(self, folder: str, name: str) -> frozenset[str] | None:
        """The files of the module with this name in a folder; None where there is none."""
        key = f"{folder}/{name}".lstrip("/")
        if key not in self._modules:
            found: frozenset[str] | None = self._package(key) or self._existing(f"{key}.py")
            if not found and self._existing(f"{key}.pyi"):  # it is in C
                found = self._existing("setup.py") | {self._name(it) for it in (self._root / folder).rglob("*.[ch]")}
            elif not found and not (name.isidentifier() and (self._root / key).is_dir()):
                found = None
            self._modules[key] = found
        return self._modules[key]

    def _existing(self, file: str) -> frozenset[str]:
        if file not in self._there:
            name = file.lstrip("/")
            self._there[file] = frozenset([name] if (self._root / name).is_file() else [])
        return self._there[file]

    def _base_of(self, folder: str, name: str) -> str | None:
        """The folder in which a file of this one finds the module with this name, as pytest sets the path."""
        if folder not in self._bases:
            found = [folder, *(path.rpartition("/")[0] for path in self._conftests(f"{folder}/_"))]
            for index, base in enumerate(found):
                while self._package(base):
                    base = base.rpartition("/")[0]
                found[index] = base
            self._bases[folder] = list(dict.fromkeys(found))
        return next((base for base in self._bases[folder] if self._module(base, name) is not None), None)

    def _packages(self) -> dict[str, str]:
        """The folders of the product's packages that lie elsewhere than their names say, and of the one at the head."""
        try:
            tool = tomllib.loads((self._root / "pyproject.toml").read_text()).get("tool", {}).get("setuptools", {})
        except OSError:
            return {}
        heads = {name: name for name in tool.get("packages", ()) if "." not in name}
        return {**heads, **tool.get("package-dir", {})}

    def _is_product(self, file: str) -> bool:
        return file.startswith(self._product)

    def _conftests(self, file: str) -> list[str]:
        folders = Path(file).parents
        return [name for folder in folders for name in self._existing((folder / "conftest.py").as_posix())]

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _up(folder: str, steps: int) -> str:
    for _ in range(steps):
        folder = folder.rpartition("/")[0]
    return folder
