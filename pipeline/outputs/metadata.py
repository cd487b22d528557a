"""The metadata of an image: the documents of its group and of its levels, as the plan has them, and as they are stored.

All follow from the plan. So one that is empty, cut or damaged is made anew, and of one that others added to, ours is put back
and theirs stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zarr

from pipeline.core.plan import Plan
from pipeline.outputs.array_document import ArrayDocument, in_memory
from pipeline.outputs.documents import Comparison, compared, dumped, merged, stored, told
from pipeline.outputs.level import DOCUMENT, Level
from pipeline.outputs.store import Store
from pipeline.volumes.ome import image_attributes

FINEST = "0"
"""Name of the level that the network's tiles are written to."""

FINGERPRINT_ATTRIBUTE = "halotile"
CONSOLIDATED = "consolidated_metadata"


class Metadata:
    """The documents of one image.

    Args:
        store: Where they lie.
        plan: Of the image.
        levels: Of the image.
    """

    def __init__(self, store: Store, plan: Plan, levels: Iterable[Level]) -> None:
        self._store, self._plan = store, plan
        self._arrays = {level.name: ArrayDocument(level) for level in levels}

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
        comparisons = [_labelled(DOCUMENT, self._group_compared(_named(group, stored(self._store, DOCUMENT), names)))]
        comparisons += [_labelled(f"{name}/{DOCUMENT}", array.compared()) for name, array in self._arrays.items()]
        return Comparison(
            tuple(line for each in comparisons for line in each.differences),
            tuple(line for each in comparisons for line in each.others),
        )

    def put(self, *, complete: bool) -> list[str]:
        """Write the documents that differ from ours; return what differed, a line each."""
        group, document = self._group(complete), stored(self._store, DOCUMENT)
        lines = [*_labelled(DOCUMENT, self._group_compared(group)).differences]
        if lines:
            self._store.put(DOCUMENT, dumped(self._group_mended(group, document)))
        for name, array in self._arrays.items():
            wrong = _labelled(f"{name}/{DOCUMENT}", array.compared()).differences
            if wrong:
                array.put()
            lines += wrong
        return lines

    def reopen(self, fingerprint: str) -> None:
        """Name no image any more, and another plan; keys of others stay."""
        document = stored(self._store, DOCUMENT)
        if document is None:  # it is made anew
            return
        attributes = document.get("attributes")
        others = (
            {key: value for key, value in attributes.items() if key != "ome"} if isinstance(attributes, dict) else {}
        )
        mark = {FINGERPRINT_ATTRIBUTE: {"fingerprint": fingerprint, "state": "incomplete", **exactness(self._plan)}}
        self._store.put(DOCUMENT, dumped({**document, "attributes": {**others, **mark}}))

    def drop_axis_units(self) -> None:
        """Remove the units of axes for which the plan has none any more: an earlier plan wrote them, and left they would be false."""
        document, ours = stored(self._store, DOCUMENT), described_image(self._plan)["multiscales"][0]["axes"]
        if document is None:
            return
        try:
            axes = document["attributes"]["ome"]["multiscales"][0]["axes"]
            stale = [theirs for mine, theirs in zip(ours, axes, strict=True) if "unit" not in mine and "unit" in theirs]
        except (KeyError, IndexError, TypeError, ValueError):
            return  # it is not there yet, or damaged: it is put back whole
        for axis in stale:
            del axis["unit"]
        if stale and document:
            self._store.put(DOCUMENT, dumped(document))

    # --- the group --------------------------------------------------------------------------------------------------

    def _group(self, complete: bool) -> dict[str, Any]:
        mark: dict[str, Any] = {
            "fingerprint": self._plan.fingerprint,
            "state": "complete" if complete else "incomplete",
            **exactness(self._plan),
        }
        attributes: dict[str, Any] = {FINGERPRINT_ATTRIBUTE: mark}
        if complete:
            attributes["ome"] = described_image(self._plan)
        return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}

    def _group_compared(self, ours: dict[str, Any]) -> Comparison:
        document = stored(self._store, DOCUMENT)
        if document is None:
            return Comparison(("is not there, or no document",), ())
        comparison = compared(ours, document)
        extra = [key for key in document if key not in ours and key != CONSOLIDATED]
        wrong = [
            *comparison.differences,
            *(f"{told(key)} is no key of a group" for key in extra),
            *self._consolidated_wrong(document),
        ]
        return Comparison(tuple(wrong), tuple(line for line in comparison.others if line.startswith("attributes.")))

    def _consolidated_wrong(self, group: dict[str, Any]) -> list[str]:
        copies = group.get(CONSOLIDATED)
        if copies is None:
            return []
        metadata = copies.get("metadata") if isinstance(copies, dict) else None
        if not isinstance(metadata, dict) or not _is_readable(group):
            return [f"{CONSOLIDATED} cannot be understood"]
        return [
            f"{CONSOLIDATED} tells something else of array '{name}': {line}"
            for name, array in self._arrays.items()
            for line in _copy_wrong(array, metadata.get(name))
        ]

    def _group_mended(self, ours: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
        if old is None:
            return ours
        document: dict[str, Any] = merged(
            ours, {key: value for key, value in old.items() if key in ours or key == CONSOLIDATED}
        )
        if self._consolidated_wrong(document):
            metadata = document[CONSOLIDATED].get("metadata") if isinstance(document[CONSOLIDATED], dict) else None
            if isinstance(metadata, dict):
                metadata.update({name: array.ours for name, array in self._arrays.items()})
            if self._consolidated_wrong(document):
                del document[CONSOLIDATED]
        return document


def stored_fingerprint(store: Store) -> str | None:
    """The fingerprint that a store says it was made for; None where it says none."""
    try:
        fingerprint = _halotile(stored(store, DOCUMENT)).get("fingerprint")
    except PermissionError:
        return None
    return fingerprint if isinstance(fingerprint, str) else None


def exactness(plan: Plan) -> dict[str, Any]:
    """What tells of an output that it is not exact; nothing of one that is."""
    return {} if plan.model.is_exact else {"exact": False}


def described_image(plan: Plan) -> dict[str, Any]:
    """The `ome` attribute of a plan's output."""
    name = image_name(Path(plan.output.url))
    return image_attributes(name=name, axes=plan.output.axes, space=plan.source.space, path=FINEST)


def image_name(root: Path) -> str:
    """Name of the image in a store."""
    return root.name.removesuffix(".zarr").removesuffix(".ome")


def _halotile(document: dict[str, Any] | None) -> dict[str, Any]:
    attributes = (document or {}).get("attributes")
    mark = attributes.get(FINGERPRINT_ATTRIBUTE) if isinstance(attributes, dict) else None
    return mark if isinstance(mark, dict) else {}


def _named(ours: dict[str, Any], old: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    """Ours, with the name that the stored one has, where that is one of these."""
    if old is None:
        return ours
    for image in ours["attributes"].get("ome", {}).get("multiscales", []):
        try:
            name = old["attributes"]["ome"]["multiscales"][0]["name"]
        except (KeyError, IndexError, TypeError):
            continue
        if name in names:
            image["name"] = name
    return ours


def _labelled(key: str, comparison: Comparison) -> Comparison:
    return Comparison(tuple(f"{key}: {line}" for line in comparison.differences), comparison.others)


def _copy_wrong(array: ArrayDocument, copy: object) -> list[str]:
    return array.copy_wrong(copy) if isinstance(copy, dict) else ["it is missing"]


def _is_readable(document: dict[str, Any]) -> bool:
    """Whether zarr understands a group's document."""
    store = in_memory(document)
    try:
        zarr.open_group(store, mode="r")
    except Exception:  # noqa: BLE001 - damaged metadata raise whatever they happen to meet
        return False
    return True
