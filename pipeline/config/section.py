"""What every group of keys is made of: strictness about names, paths made absolute, `${NAME}` from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.core.geometry.axes import why_no_axes
from pipeline.core.locations import is_url, without_file_scheme
from pipeline.errors import ConfigError
from pipeline.places.credentials import carried, shown

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Extent = Annotated[int, Field(ge=1, le=2**26)]  # as long as an axis of a volume may be
Voxels = Annotated[tuple[Extent, Extent, Extent], Field(description="z, y, x")]
Shared = Annotated[int, Field(ge=0, le=2**26)]
Side = Annotated[int, Field(le=2**26)]
Margin = Annotated[tuple[Side, Side, Side], Field(description="z, y, x")]


LONGEST_NAME = 255 - 15
"""Bytes of a file's or a folder's name: run directories and unfinished files have longer ones (`.run`, `.partial`)."""

LONGEST_PATH = 4000
"""Bytes of a path, likewise of 4096."""


class Section(BaseModel):
    """A group of keys: frozen, and strict about names."""

    # Inputs are hidden where others print pydantic's own error, Prefect for one: they may hold credentials.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Whole(Section):
    """What one YAML holds, or one form. `${NAME}` is taken from the environment here, so that secrets stay out of both."""

    @model_validator(mode="before")
    @classmethod
    def _expanded_without_empty_sections(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        return {name: expanded(value) for name, value in content.items() if value is not None}


def _absolute(url: Any) -> Any:
    """Local paths made absolute, against the working directory; `file://` dropped; other URLs as they are."""
    if not isinstance(url, str) or not url.strip():
        raise ValueError("a path is needed")
    if kind := carried(url):
        raise ValueError(
            f"the URL carries {kind}, which would stand in the plan, the ledger, the report and the logs. Take it out, and "
            "give it by the environment variables or the profile of the storage library (such as AWS_PROFILE)"
        )
    url = without_file_scheme(url)
    if is_url(url):
        return url
    _check_names(url)
    return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 - must not resolve links, nor fail at `~no-one`


def _check_names(path: str) -> None:
    """Refuse a path that no file system takes, before something is made beside it."""
    longest = max(path.split("/"), key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > LONGEST_NAME:
        raise ValueError(
            f"the name '{longest[:40]}...' has {len(os.fsencode(longest))} bytes, and file systems take 255: with what is put "
            f"beside it, {LONGEST_NAME} are left. Shorten it"
        )
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(
            f"the path has {len(os.fsencode(path))} bytes, and file systems take {LONGEST_PATH}. Shorten it"
        )
    if "\0" in path:
        raise ValueError("the path has a zero byte in it, which no file system takes. Leave it out")


Location = Annotated[str, BeforeValidator(_absolute)]


def _check_axes(axes: str) -> str:
    if why := why_no_axes(axes):
        raise ValueError(why)
    return axes


Axes = Annotated[str, AfterValidator(_check_axes)]


def expanded(value: Any) -> Any:
    """`value` with every `${NAME}` in it, however deep, replaced by what the environment says.

    Raises:
        ConfigError: A variable is not set.
    """
    if isinstance(value, Mapping):
        return {key: expanded(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [expanded(child) for child in value]
    return _from_environment(value) if isinstance(value, str) else value


def _from_environment(text: str) -> str:
    def look_up(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"'{shown(text)}' names the environment variable {match[1]}, which is not set. Set it.")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", look_up, text)
