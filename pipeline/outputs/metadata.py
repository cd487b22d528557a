"""The metadata of an output: the documents of its group and of its array, as the plan has them, and as they are stored.

Both follow from the plan. So one that is empty, cut or damaged is made anew, and of one that others added to, ours is put back
and theirs stays.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.core.plan import Plan
from pipeline.core.strict_json import json_text
from pipeline.outputs.documents import Comparison, compared, merged, parsed, same, told
from pipeline.outputs.store import Store
from pipeline.volumes.ome import image_attributes

ARRAY = "0"
DOCUMENT = "zarr.json"
FINGERPRINT_ATTRIBUTE = "halotile"
CONSOLIDATED = "consolidated_metadata"


class Metadata:
    """The documents of one output.

    Args:
        store: Where they lie.
        plan: Of the output.
        array: The array's document, as the plan makes it.
    """

    def __init__(self, store: Store, plan: Plan, array: bytes) -> None:
        self._store, self._plan = store, plan
        self._array_bytes = array
        self._array: dict[str, Any] = json.loads(array)

    def is_complete(self) -> bool:
        """Whether the group says that the image is all there."""
        return _halotile(stored(self._store, DOCUMENT)).get("state") == "complete"

    def compared(self, *, complete: bool, names: tuple[str, ...] = ()) -> Comparison:
        """What the stored documents are against ours.

        Args:
            complete: Whether the image was published.
            names: That the image may have besides its own: it was moved since.
        """
        group = self._group(complete)
        found = [
            _labelled(DOCUMENT, self._group_compared(_named(group, stored(self._store, DOCUMENT), names))),
            _labelled(f"{ARRAY}/{DOCUMENT}", self._array_compared(stored(self._store, f"{ARRAY}/{DOCUMENT}"))),
        ]
        return Comparison(
            tuple(line for each in found for line in each.differences),
            tuple(line for each in found for line in each.others),
        )

    def put(self, *, complete: bool) -> list[str]:
        """Write what is not as ours; gives what was, a line each."""
        group, there = self._group(complete), stored(self._store, DOCUMENT)
        lines = _labelled(DOCUMENT, self._group_compared(group)).differences
        if lines:
            self._store.put(DOCUMENT, _dumped(self._group_mended(group, there)))
        array_lines = _labelled(
            f"{ARRAY}/{DOCUMENT}", self._array_compared(stored(self._store, f"{ARRAY}/{DOCUMENT}"))
        ).differences
        if array_lines:
            self._store.put(f"{ARRAY}/{DOCUMENT}", self._array_mended(stored(self._store, f"{ARRAY}/{DOCUMENT}")))
        return [*lines, *array_lines]

    def reopen(self, fingerprint: str) -> None:
        """Name no image any more, and another plan; keys of others stay."""
        there = stored(self._store, DOCUMENT)
        if there is None:  # it is made anew
            return
        attributes = there.get("attributes")
        kept = {key: value for key, value in attributes.items() if key != "ome"} if isinstance(attributes, dict) else {}
        said = {FINGERPRINT_ATTRIBUTE: {"fingerprint": fingerprint, "state": "incomplete"}}
        self._store.put(DOCUMENT, _dumped({**there, "attributes": {**kept, **said}}))

    def drop_units(self) -> None:
        """Remove the units of axes for which the plan has none any more: an earlier plan wrote them, and left they would be false."""
        document, ours = stored(self._store, DOCUMENT), described_image(self._plan)["multiscales"][0]["axes"]
        if document is None:
            return
        try:
            axes = document["attributes"]["ome"]["multiscales"][0]["axes"]
            stale = [there for mine, there in zip(ours, axes, strict=True) if "unit" not in mine and "unit" in there]
        except (KeyError, IndexError, TypeError, ValueError):
            return  # it is not there yet, or damaged: it is put back whole
        for axis in stale:
            del axis["unit"]
        if stale and document:
            self._store.put(DOCUMENT, _dumped(document))

    # --- the group --------------------------------------------------------------------------------------------------

    def _group(self, complete: bool) -> dict[str, Any]:
        said = {"fingerprint": self._plan.fingerprint, "state": "complete" if complete else "incomplete"}
        attributes: dict[str, Any] = {FINGERPRINT_ATTRIBUTE: said}
        if complete:
            attributes["ome"] = described_image(self._plan)
        return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}

    def _group_compared(self, ours: dict[str, Any]) -> Comparison:
        there = stored(self._store, DOCUMENT)
        if there is None:
            return Comparison(("is not there, or no document",), ())
        found = compared(ours, there)
        extra = [key for key in there if key not in ours and key != CONSOLIDATED]
        wrong = [
            *found.differences,
            *(f"{told(key)} is no key of a group" for key in extra),
            *self._consolidated_wrong(there),
        ]
        return Comparison(tuple(wrong), tuple(line for line in found.others if line.startswith("attributes.")))

    def _consolidated_wrong(self, group: dict[str, Any]) -> list[str]:
        copies = group.get(CONSOLIDATED)
        if copies is None:
            return []
        metadata = copies.get("metadata") if isinstance(copies, dict) else None
        if not isinstance(metadata, dict) or not _is_readable(group, zarr.open_group):
            return [f"{CONSOLIDATED} cannot be understood"]
        found = metadata.get(ARRAY)
        wrong = self._copy_wrong(found) if isinstance(found, dict) else ["it is missing"]
        return [f"{CONSOLIDATED} tells something else of array '{ARRAY}': {line}" for line in wrong]

    def _group_mended(self, ours: dict[str, Any], there: dict[str, Any] | None) -> dict[str, Any]:
        if there is None:
            return ours
        found: dict[str, Any] = merged(
            ours, {key: value for key, value in there.items() if key in ours or key == CONSOLIDATED}
        )
        if self._consolidated_wrong(found):
            metadata = found[CONSOLIDATED].get("metadata") if isinstance(found[CONSOLIDATED], dict) else None
            if isinstance(metadata, dict):
                metadata[ARRAY] = self._array
            if self._consolidated_wrong(found):
                del found[CONSOLIDATED]
        return found

    # --- the array --------------------------------------------------------------------------------------------------

    def _array_compared(self, there: dict[str, Any] | None) -> Comparison:
        """Every key, also those that go without saying for zarr: other readers may need them. Attributes are others'."""
        if there is None:
            return Comparison(("is not there, or no document",), ())
        attributes = there.get("attributes")
        wrong = [] if isinstance(attributes, dict) else [f"attributes is {told(attributes)}"]
        keys = [key for key in self._array if key != "attributes" and not same(self._array[key], there.get(key))]
        wrong += [f"{key} is {told(there.get(key))}, written as {told(self._array[key])}" for key in keys]
        extra = [key for key in there if key not in self._array]
        if extra and _as_read({**self._array, **{key: there[key] for key in extra}}) is None:
            return Comparison((*wrong, *(f"{told(key)} is no key of an array" for key in extra)), ())
        others = [f"attributes.{told(key)[1:-1]}" for key in attributes] if isinstance(attributes, dict) else []
        return Comparison(tuple(wrong), (*others, *(told(key)[1:-1] for key in extra)))

    def _copy_wrong(self, copy: dict[str, Any]) -> list[str]:
        """What a consolidated copy of the array's document tells else, as zarr reads it: others wrote it."""
        read, ours = _as_read({**copy, "attributes": {}}), _as_read(self._array)
        if read is None or ours is None:
            return ["it cannot be understood"]
        return [f"{key} is {told(copy.get(key))}" for key in ours if read.get(key) != ours[key]]

    def _array_mended(self, there: dict[str, Any] | None) -> bytes:
        attributes = (there or {}).get("attributes")
        if not isinstance(attributes, dict) or not attributes:
            return self._array_bytes
        return _dumped({**self._array, "attributes": attributes})


def stored(store: Store, key: str) -> dict[str, Any] | None:
    """A document as it is stored; None where there is none, or something else."""
    content = store.get(key)
    return None if content is None else parsed(content)


def stored_fingerprint(store: Store) -> str | None:
    """The fingerprint that a store says it was made for; None where it says none."""
    try:
        found = _halotile(stored(store, DOCUMENT)).get("fingerprint")
    except PermissionError:
        return None
    return found if isinstance(found, str) else None


def described_image(plan: Plan) -> dict[str, Any]:
    """The `ome` attribute of a plan's output."""
    name = image_name(Path(plan.output.url))
    return image_attributes(name=name, axes=plan.output.axes, space=plan.source.space, path=ARRAY)


def image_name(root: Path) -> str:
    """Name of the image in a store."""
    return root.name.removesuffix(".zarr").removesuffix(".ome")


def _halotile(document: dict[str, Any] | None) -> dict[str, Any]:
    attributes = (document or {}).get("attributes")
    found = attributes.get(FINGERPRINT_ATTRIBUTE) if isinstance(attributes, dict) else None
    return found if isinstance(found, dict) else {}


def _named(ours: dict[str, Any], there: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    """Ours, with the name that the stored one has, where that is one of these."""
    if there is None:
        return ours
    for image in ours["attributes"].get("ome", {}).get("multiscales", []):
        try:
            name = there["attributes"]["ome"]["multiscales"][0]["name"]
        except (KeyError, IndexError, TypeError):
            continue
        if name in names:
            image["name"] = name
    return ours


def _labelled(key: str, found: Comparison) -> Comparison:
    return Comparison(tuple(f"{key}: {line}" for line in found.differences), found.others)


def _as_read(document: dict[str, Any]) -> dict[str, Any] | None:
    """The array's metadata as zarr understands them; None where it does not."""
    store = _memory(document)
    try:
        return zarr.open_array(store, mode="r").metadata.to_dict()
    except Exception:  # noqa: BLE001 - damaged metadata raise whatever they happen to meet
        return None


def _is_readable(document: dict[str, Any], read: Any) -> bool:
    try:
        read(_memory(document), mode="r")
    except Exception:  # noqa: BLE001 - damaged metadata raise whatever they happen to meet
        return False
    return True


def _memory(document: dict[str, Any]) -> MemoryStore:
    return MemoryStore({DOCUMENT: default_buffer_prototype().buffer.from_bytes(_dumped(document))})


def _dumped(document: dict[str, Any]) -> bytes:
    return json_text(document, indent=2).encode()
