"""What a person wrote of a dataset's volumes: one location, a list, a YAML or a CSV; checked, all violations at once."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from pipeline.config import TOLD, Axes, Location, ReadingConfig, Section, Whole, content_of_yaml, violations
from pipeline.core.locations import is_url
from pipeline.core.names import why_no_name
from pipeline.errors import ConfigError
from pipeline.places.listing import item_at, small_files

Source = str | os.PathLike[str] | Sequence[str | Mapping[str, Any]] | Mapping[str, Any]
"""A location, the path of a YAML or CSV, a list of them and of mappings, or a mapping that has such a list in `volumes`."""

TABLES = (".yaml", ".yml", ".csv")


def _in_its_folder(url: Any, info: ValidationInfo) -> Any:
    """A relative path is relative to the file that holds it."""
    folder = (info.context or {}).get("folder")
    relative = isinstance(url, str) and url.strip() and not is_url(url) and not url.startswith(("~", "/"))
    return f"{folder}/{url}" if relative and folder else url


def _check_name(name: str) -> str:
    if why := why_no_name(name):
        raise ValueError(why)
    return name


def _without_slash(url: str) -> str:
    scheme, sign, rest = url.rpartition("://")
    return f"{scheme}{sign}{rest.rstrip('/') or ('' if sign else '/')}"


class VolumeRow(Whole):
    """A location of volumes, and what is said of them."""

    url: Annotated[Location, BeforeValidator(_in_its_folder), AfterValidator(_without_slash)]
    name: Annotated[str, AfterValidator(_check_name)] | None = None
    level: Annotated[int, Field(ge=0)] | None = None
    axes: Axes | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """Keys of `input` that are given here."""
        return self.model_dump(include=set(ReadingConfig.model_fields), exclude_none=True)


class VolumesFile(Section):
    """What a YAML holds."""

    volumes: list[Any]


COLUMNS = tuple(VolumeRow.model_fields)

_ITSELF = "the location"


@dataclass(frozen=True, slots=True)
class Row:
    """A location that was named.

    Args:
        place: Where, for errors; such as `volumes.csv, line 3`.
        values: What was written of it.
        alone: It is all of the source, and was given as it is, not in a list.
    """

    place: str
    values: VolumeRow
    alone: bool = False


def rows_of(source: Source) -> list[Row]:
    """The locations that a source names, in its order.

    Raises:
        ConfigError: Everything that is wrong with it, at once; or it cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        where = os.fspath(source)
        if _is_table(where):
            return _of_table(where)
        return _rows("", [(_ITSELF, where)], alone=True)
    listed = [(f"item {number}", one) for number, one in enumerate(_volumes(source, "The catalogue"), 1)]
    tables = {place: _of_table(one) for place, one in listed if isinstance(one, str) and _is_table(one)}
    others = {row.place: [row] for row in _rows("", [pair for pair in listed if pair[0] not in tables])}
    return [row for place, _ in listed for row in (tables | others)[place]]


def _is_table(where: str) -> bool:
    return where.lower().endswith(TABLES)


def _of_table(where: str) -> list[Row]:
    """Rows of a YAML or CSV."""
    (at,) = _rows("", [(_ITSELF, where)])
    url = at.values.url
    text = _text(url)
    rows = list(_of_csv(text, url) if url.lower().endswith(".csv") else _of_yaml(text, url))
    nested = [place for place, value in rows if isinstance(value, str) and _is_table(value)]
    if nested:
        raise ConfigError(f"Catalogue '{url}' names another catalogue ({nested[0]}). List both where they are used.")
    return _rows(url, rows, folder=url.rpartition("/")[0])


def _text(url: str) -> str:
    (content,) = small_files([url])
    if content is None:
        folder = (item := item_at(url)) is not None and item.folder
        problem = (
            "it is a folder: name what is in it, such as FOLDER/*.ome.zarr" if folder else "there is nothing there"
        )
        raise ConfigError(f"Catalogue '{url}' cannot be read: {problem}. Check the path.")
    if isinstance(content, OSError):
        raise ConfigError(f"Catalogue '{url}' cannot be read ({content}). Check the path, and who may read it.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Catalogue '{url}' is no text in UTF-8 ({error}). Save it as UTF-8.") from error


def _of_yaml(text: str, url: str) -> Iterator[tuple[str, Any]]:
    content = content_of_yaml(text, f"Catalogue '{url}'")
    yield from ((f"item {number}", one) for number, one in enumerate(_volumes(content, f"Catalogue '{url}'"), 1))


def _volumes(content: Any, what: str) -> Sequence[Any]:
    """The list that a YAML is, or has in `volumes`."""
    if isinstance(content, Mapping):
        try:
            content = VolumesFile.model_validate(content).volumes
        except ValidationError as error:
            raise _refusal(what, violations(VolumesFile, error.errors())) from error
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        held = "nothing" if not content else f"one value, {content!r}"
        raise ConfigError(
            f"{what} holds {held}; expected a list of locations, or of keys {', '.join(COLUMNS)}, or `volumes:` with one."
        )
    return content


def _of_csv(text: str, url: str) -> Iterator[tuple[str, Any]]:
    """Cells by column, of every line that has any; an empty one says nothing.

    Raises:
        ConfigError: It is no CSV, or its columns are others.
    """
    lines = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] = []
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header([cell.strip() for cell in cells], url)
                continue
            if len(cells) > len(header):
                raise _refusal(
                    f"Catalogue '{url}'",
                    [f"line {lines.line_num}: {len(cells)} cells in {len(header)} columns; quote a cell with a comma"],
                )
            row = {column: cell.strip() for column, cell in zip(header, cells, strict=False)}
            yield f"line {lines.line_num}", {column: cell for column, cell in row.items() if cell}
    except csv.Error as error:
        raise ConfigError(f"Catalogue '{url}', line {lines.line_num}, is no CSV ({error}). Mend it.") from error
    if not header:
        raise ConfigError(
            f"Catalogue '{url}' is empty. Expected a header, url and perhaps {', '.join(COLUMNS[1:])}, and a line a volume."
        )


def _header(cells: list[str], url: str) -> list[str]:
    problems = [
        f"unknown column '{cell}'{_suggestion(cell)}" if cell not in COLUMNS else f"column '{cell}' twice"
        for i, cell in enumerate(cells)
        if cell not in COLUMNS or cell in cells[:i]
    ]
    if "url" not in cells:
        sign = next((sign for sign in (";", "\t") if len(cells) == 1 and sign in cells[0]), None)
        problems.append("no column 'url'" + (f"; columns are parted by commas, not by {sign!r}" if sign else ""))
    if problems:
        raise _refusal(f"Catalogue '{url}'", [f"line 1, the header: {problem}" for problem in problems])
    return cells


def _suggestion(cell: str) -> str:
    close = get_close_matches(cell.lower(), COLUMNS, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(COLUMNS)}"


def _rows(source: str, listed: Iterable[tuple[str, Any]], *, folder: str = "", alone: bool = False) -> list[Row]:
    """What was told, by place, as rows.

    Raises:
        ConfigError: Everything that is wrong with them.
    """
    rows, problems = [], []
    for place, one in listed:
        values = {"url": one} if isinstance(one, str) else one
        try:
            row = VolumeRow.model_validate(values, context={"folder": folder})
            rows.append(Row(f"{source}, {place}" if source else place, row, alone))
        except ValidationError as error:
            problems += [f"{place}: {problem}" for problem in violations(VolumeRow, error.errors())]
    if problems:
        raise _refusal(f"Catalogue '{source}'" if source else "The catalogue", problems)
    if source and not rows:
        raise ConfigError(f"Catalogue '{source}' names no volume: it has a header alone. Add a line a volume.")
    return rows


def _refusal(what: str, problems: Sequence[str]) -> ConfigError:
    more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
    title = f"{what} cannot be read ({len(problems)} problem{'s'[: len(problems) > 1]}):"
    return ConfigError("\n".join([title, *(f"  {problem}" for problem in [*problems[:TOLD], *more])]))
