"""The metadata of one level's array: what is stored of them against what the level makes, and ours put back."""

from __future__ import annotations

import json
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.outputs.documents import Comparison, dumped, same, stored, told
from pipeline.outputs.level import DOCUMENT, Level


class ArrayDocument:
    """The document of a level.

    Args:
        level: Whose it is.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self.ours: dict[str, Any] = json.loads(level.document)

    def _stored(self) -> dict[str, Any] | None:
        return stored(self._level.store, self._level.document_key)

    def compared(self) -> Comparison:
        """Every key, also those that go without saying for zarr: other readers may need them. Attributes are others'."""
        document = self._stored()
        if document is None:
            return Comparison(("is not there, or no document",), ())
        attributes = document.get("attributes")
        wrong = [] if isinstance(attributes, dict) else [f"attributes is {told(attributes)}"]
        keys = [key for key in self.ours if key != "attributes" and not same(self.ours[key], document.get(key))]
        wrong += [f"{key} is {told(document.get(key))}, written as {told(self.ours[key])}" for key in keys]
        extra = [key for key in document if key not in self.ours]
        if extra and _as_read({**self.ours, **{key: document[key] for key in extra}}) is None:
            return Comparison((*wrong, *(f"{told(key)} is no key of an array" for key in extra)), ())
        others = [f"attributes.{told(key)[1:-1]}" for key in attributes] if isinstance(attributes, dict) else []
        return Comparison(tuple(wrong), (*others, *(told(key)[1:-1] for key in extra)))

    def put(self) -> None:
        """Write ours, with the attributes of others."""
        attributes = (self._stored() or {}).get("attributes")
        theirs = isinstance(attributes, dict) and attributes
        content = dumped({**self.ours, "attributes": attributes}) if theirs else self._level.document
        self._level.store.put(self._level.document_key, content)

    def copy_wrong(self, copy: dict[str, Any]) -> list[str]:
        """Where a consolidated copy of the document differs, as zarr reads it: others wrote it."""
        read, ours = _as_read({**copy, "attributes": {}}), _as_read(self.ours)
        if read is None or ours is None:
            return ["it cannot be understood"]
        return [f"{key} is {told(copy.get(key))}" for key in ours if read.get(key) != ours[key]]


def _as_read(document: dict[str, Any]) -> dict[str, Any] | None:
    """The array's metadata as zarr understands them; None where it does not."""
    store = in_memory(document)
    try:
        return zarr.open_array(store, mode="r").metadata.to_dict()
    except Exception:  # noqa: BLE001 - damaged metadata raise whatever they happen to meet
        return None


def in_memory(document: dict[str, Any]) -> MemoryStore:
    """A store that holds a document and nothing else."""
    return MemoryStore({DOCUMENT: default_buffer_prototype().buffer.from_bytes(dumped(document))})
