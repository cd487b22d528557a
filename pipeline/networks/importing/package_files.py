"""Files of a package of bioimage.io: of a folder, or of a zip that is never unpacked; each is what its digest says, before it is used.

A package comes from a stranger. Whatever it names lies inside of it, and nothing is written where it says: who needs a file by its
path is given a copy, in a folder of his own, under a name of ours.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from pipeline.core.printable import one_line
from pipeline.errors import ModelError

LARGEST_DESCRIPTION = 2**21
"""Bytes of the YAML."""

LARGEST_FILE = 2**34
"""Bytes of one file."""

MOST_MEMBERS = 10_000
"""Files of a zip."""

LARGEST_UNSEEN = 2**28
"""Bytes that a member of a zip may become though it is `MOST_SQUEEZED` times smaller."""

MOST_SQUEEZED = 200
"""Weights are squeezed to half of their size at best."""

NAMES = ("rdf.yaml", "rdf.yml", "bioimageio.yaml", "bioimageio.yml", "model.yaml", "model.yml")
"""What descriptions are called, the usual first."""

OTHER_NAMES = re.compile(r"(?i).*(rdf|bioimageio).*\.ya?ml")
"""What others are called; a package has one of them."""

SAYS_MODEL = re.compile(r"(?m)^type:\s*['\"]?model\b")
SAYS_VERSION = re.compile(r"(?m)^format_version:\s*['\"]?0\.")


class PackageFiles(AbstractContextManager["PackageFiles"]):
    """The files of a package, open.

    Args:
        path: A folder, a zip, or the description in a folder.

    Raises:
        ModelError: It is none, has no description, or is a zip that reaches out of itself or grows without bound.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path) if path.is_file() and zipfile.is_zipfile(path) else None
        try:
            if self._zip:
                _check_members(self._zip.infolist(), path)
            self.description = _description_of(path, list(self._names()))
        except ModelError:
            self.close()
            raise
        self._root = PurePosixPath(self.description).parent

    def _names(self) -> Iterator[str]:
        if self._zip:
            yield from (name for name in self._zip.namelist() if len(PurePosixPath(name).parts) <= 2)
        elif self.path.is_file():
            yield self.path.name
        elif self.path.is_dir():
            yield from sorted(entry.name for entry in self.path.iterdir() if entry.is_file())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Close the zip, if it is one."""
        if self._zip:
            self._zip.close()

    def text(self) -> str:
        """The description.

        Raises:
            ModelError: It is no text, or too long.
        """
        content = self._content(PurePosixPath(self.description).name, LARGEST_DESCRIPTION)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ModelError(f"'{self.path}': its description '{self.description}' is no UTF-8 text.") from error

    def has(self, source: str) -> bool:
        """Whether a file is there; what a package names outside of itself is not."""
        if not _lies_inside(source):
            return False
        if self._zip:
            return str(self._root / source) in self._zip.namelist()
        return (self._folder / source).is_file()

    def read(self, source: str, sha256: str | None) -> bytes:
        """A file's bytes, which are what the package says of them.

        Args:
            source: Its name in the package.
            sha256: Digest that it must have; None where the package says none.

        Raises:
            ModelError: It is not there, lies elsewhere, or is another.
        """
        content = self._content(source, LARGEST_FILE)
        found = hashlib.sha256(content).hexdigest()
        if sha256 and found != sha256.lower():
            raise ModelError(
                f"'{self.path}': its file '{source}' has SHA-256 {found[:12]}..., and the package says {sha256[:12]}... It is damaged, or "
                "not what was published, and is not read. Download the package again."
            )
        return content

    def copy(self, source: str, sha256: str | None, target: Path) -> Path:
        """A copy of a file that is what the package says of it, where somebody needs one by its path."""
        target.write_bytes(self.read(source, sha256))
        return target

    @property
    def _folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path

    def _content(self, source: str, most: int) -> bytes:
        if not _lies_inside(source):
            where = "at an address, and nothing is downloaded here" if "://" in source else "outside of the package"
            raise ModelError(
                f"'{self.path}': its file '{one_line(source)[:200]}' lies {where}. Put it beside the description, and name it there."
            )
        if not self.has(source):
            raise ModelError(f"'{self.path}': its file '{source}' is not there. Download the package again, whole.")
        try:
            if self._zip:
                info = self._zip.getinfo(str(self._root / source))
                self._check_size(source, info.file_size, most)
                return self._zip.read(info)
            path = (self._folder / source).resolve()
            if not path.is_relative_to(self._folder.resolve()):
                raise ModelError(
                    f"'{self.path}': its file '{source}' is a link out of the package, which is not followed."
                )
            self._check_size(source, path.stat().st_size, most)
            return path.read_bytes()
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise ModelError(
                f"'{self.path}': its file '{source}' cannot be read ({one_line(str(error))[:200]})."
            ) from error

    def _check_size(self, source: str, size: int, most: int) -> None:
        if size > most:
            raise ModelError(f"'{self.path}': its file '{source}' has {size:,} bytes; at most {most:,} are read.")


def is_package(path: Path) -> bool:
    """Whether a folder or file is a package of bioimage.io, by its content."""
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                text = file.read(LARGEST_DESCRIPTION).decode("utf-8-sig")
            return bool(SAYS_MODEL.search(text) and SAYS_VERSION.search(text))
        if path.is_file():
            with zipfile.ZipFile(path) as file:
                names = [name for name in file.namelist() if len(PurePosixPath(name).parts) <= 2]
        else:
            names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, ValueError):
        return False
    return bool(_descriptions(names))


def _descriptions(names: list[str]) -> list[str]:
    """Names that a description may have, the likeliest first."""
    base = {name: PurePosixPath(name).name for name in names}
    usual = [name for wanted in NAMES for name in sorted(names, key=len) if base[name] == wanted]
    return usual or sorted(name for name in names if OTHER_NAMES.fullmatch(base[name]))


def _description_of(path: Path, names: list[str]) -> str:
    if path.is_file() and names == [path.name]:
        return path.name
    found = _descriptions(names)
    if not found:
        raise ModelError(f"'{path}' holds no description of a package of bioimage.io (rdf.yaml, bioimageio.yaml).")
    if len(found) > 1 and PurePosixPath(found[0]).name not in NAMES:
        raise ModelError(f"'{path}' holds several descriptions: {', '.join(found[:6])}. Name the one that is meant.")
    return found[0]


def _lies_inside(source: str) -> bool:
    path = PurePosixPath(source)
    return bool(source) and not (path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", source))


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuse a zip that no packer makes, as a whole.

    Raises:
        ModelError: Of its members some lie outside, are links, are there twice, or hold far more than they look.
    """
    if len(members) > MOST_MEMBERS:
        raise ModelError(f"Zip '{path}' holds {len(members):,} files; at most {MOST_MEMBERS:,} are read.")
    seen = set[str]()
    for member in members:
        if problem := _problem(member, seen):
            raise ModelError(f"Zip '{path}' is refused: its file '{one_line(member.filename)[:200]}' {problem}.")
        seen.add(member.filename)
    stored = sum(member.compress_size for member in members)
    if stored > path.stat().st_size:
        raise ModelError(f"Zip '{path}' is refused: its files overlap, and become more than they are.")


def _problem(member: zipfile.ZipInfo, seen: set[str]) -> str:
    if not _lies_inside(member.filename):
        return "lies outside of it"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.filename in seen:
        return "is there twice"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is squeezed in a way that is not read here"
    if member.file_size > max(LARGEST_UNSEEN, MOST_SQUEEZED * member.compress_size):
        return f"has {member.compress_size:,} bytes, which would become {member.file_size:,}"
    return ""
