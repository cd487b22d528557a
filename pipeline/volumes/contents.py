"""What lies at a location, by its name and the metadata of its root alone.

Metadata of OME-Zarr is read leniently (decision 2): what finds the images is taken, the rest is left. No array is opened.
Sources: OME-NGFF 0.4 and 0.5, sections "plate", "well" and "bioformats2raw.layout".
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.locations import is_url
from pipeline.errors import StorageError
from pipeline.places.listing import Item, children, item_at, small_files
from pipeline.volumes.foreign import HDF5_SUFFIXES, TIFF_SUFFIXES, foreign_place
from pipeline.volumes.hdf5 import dataset_names

Kind = Literal[
    "image",
    "array",
    "tiff",
    "dataset",
    "hdf5",
    "plate",
    "well",
    "collection",
    "group",
    "folder",
    "file",
    "damaged",
    "nothing",
]

VOLUMES = frozenset({"image", "array", "tiff", "dataset", "damaged"})
"""Kinds that a run takes as one volume; a damaged one fails by its name."""

HOLDERS = frozenset({"plate", "well", "collection", "hdf5"})
"""Kinds that hold volumes."""


@dataclass(frozen=True, slots=True)
class Content:
    """What lies at a location.

    Args:
        url: The location.
        kind: What it is.
        why: What is wrong with a damaged one, or why a file is no volume.
        attributes: Of a Zarr group, below `ome` where it has that.
    """

    url: str
    kind: Kind
    why: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


def classify(items: Sequence[Item | str]) -> list[Content]:
    """Say what each item is: files by their names, folders by at most four documents, read for all of them at once.

    Args:
        items: As a listing has them; or locations of which nothing is known.

    Raises:
        StorageError: A store cannot be asked.
    """
    urls = [item if isinstance(item, str) else item.url for item in items]
    files = [isinstance(item, Item) and not item.folder for item in items]
    contents = {url: _by_name(url) for url, is_file in zip(urls, files, strict=True) if is_file or foreign_place(url)}
    for look in (_version_3, _version_2):
        contents |= look([url for url in dict.fromkeys(urls) if url not in contents])
    known = {item.url for item in items if isinstance(item, Item)}
    return [contents.get(url) or _without_metadata(url, url in known) for url in urls]


def members(contents: Sequence[Content]) -> list[list[str]]:
    """The volumes in each plate, well, collection or HDF5 file, in the order of its metadata. They need not be there.

    A well that is not there, or names no images, is in its place.

    Raises:
        StorageError: A file or a store cannot be read.
    """
    wells = {content.url: _paths(content, "plate", "wells") for content in contents if content.kind == "plate"}
    by_url = {content.url: content for content in classify([well for plate in wells.values() for well in plate])}
    return [
        [image for well in wells[content.url] for image in _images(by_url[well])]
        if content.kind == "plate"
        else _inside(content)
        for content in contents
    ]


def _inside(content: Content) -> list[str]:
    if content.kind == "hdf5":
        return [f"{content.url}/{name}" for name in dataset_names(content.url)]
    if content.kind == "well":
        return _images(content)
    return _series(content)


def _images(well: Content) -> list[str]:
    return _paths(well, "well", "images") if well.kind == "well" else [well.url]


def _series(collection: Content) -> list[str]:
    """What the group `OME` lists, else the numbered groups."""
    (listed,) = classify([f"{collection.url}/OME"])
    series = listed.attributes.get("series")
    if isinstance(series, list) and series and all(map(_is_path, series)):
        return [f"{collection.url}/{path}" for path in series]
    numbered = [item for item in children(collection.url) or () if item.folder and item.name.isdecimal()]
    return [item.url for item in sorted(numbered, key=lambda item: int(item.name))]


# --- documents ----------------------------------------------------------------------------------------------------------


def _version_3(urls: Sequence[str]) -> dict[str, Content]:
    return {
        url: _whole(url, document, _node(url, document if isinstance(document, dict) else {}))
        for url, document in _documents(urls, "zarr.json")
    }


def _node(url: str, document: Mapping[str, Any]) -> Content:
    kind = document.get("node_type")
    if kind == "group":
        return _group(url, document.get("attributes"))
    return Content(url, "array") if kind == "array" else Content(url, "damaged", "zarr.json names no node_type")


def _version_2(urls: Sequence[str]) -> dict[str, Content]:
    """Groups that their attributes make an image, a plate, or the like; then the others."""
    contents: dict[str, Content] = {}
    plain: dict[str, Content] = {}
    for url, document in _documents(urls, ".zattrs"):
        content = _whole(url, document, _group(url, document))
        (plain if content.kind == "group" else contents)[url] = content
    for url, document in _documents([url for url in urls if url not in contents], ".zgroup"):
        contents[url] = _whole(url, document, plain.get(url, Content(url, "group")))
    for url, document in _documents([url for url in urls if url not in contents], ".zarray"):
        contents[url] = _whole(url, document, Content(url, "array"))
    return contents


def _whole(url: str, document: dict[str, Any] | str, content: Content) -> Content:
    return Content(url, "damaged", document) if isinstance(document, str) else content


def _documents(urls: Sequence[str], name: str) -> Iterable[tuple[str, dict[str, Any] | str]]:
    """A document of each that has it, or what is wrong with it."""
    for url, content in zip(urls, small_files([f"{url}/{name}" for url in urls]), strict=True):
        if content is None:
            continue
        if isinstance(content, OSError):
            yield url, f"{name} cannot be read ({content.strerror or content})"
            continue
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):  # of the text, its encoding, or its depth
            yield url, f"{name} is no JSON: incomplete, or damaged"
        else:
            yield url, document if isinstance(document, dict) else f"{name} holds no keys"


def _group(url: str, attributes: Any) -> Content:
    """A group by its attributes. What is an image is one, whatever else it says; a plate before a collection, as specified."""
    document = attributes if isinstance(attributes, dict) else {}
    ome = document.get("ome", document)
    ome = ome if isinstance(ome, dict) else {}
    if ome.get("multiscales"):
        return Content(url, "image", attributes=ome)
    if "plate" in ome:
        return _holder(url, "plate", "wells", ome)
    if "well" in ome:
        return _holder(url, "well", "images", ome)
    return Content(url, "collection" if "bioformats2raw.layout" in ome else "group", attributes=ome)


def _holder(url: str, kind: Literal["plate", "well"], entries: str, ome: Mapping[str, Any]) -> Content:
    content = Content(url, kind, attributes=ome)
    try:
        paths = [entry["path"] for entry in ome[kind][entries]]
    except (KeyError, TypeError):
        return Content(url, "damaged", f"its {kind} metadata has no {entries} with paths")
    if not all(map(_is_path, paths)):
        return Content(url, "damaged", f"its {kind} metadata has a path that leads nowhere in it")
    return content


def _paths(content: Content, kind: str, entries: str) -> list[str]:
    return [f"{content.url}/{entry['path'].strip('/')}" for entry in content.attributes[kind][entries]]


def _is_path(path: Any) -> bool:
    """Whether metadata names something inside its group."""
    return isinstance(path, str) and path.strip("/") != "" and not path.startswith("/") and ".." not in path.split("/")


# --- the rest -----------------------------------------------------------------------------------------------------------


def _by_name(url: str) -> Content:
    if _is_circular(url):
        return Content(url, "file", "a symbolic link that leads round in a circle")
    place = foreign_place(url)
    low = url.lower()
    if place is None:
        if low.endswith((*TIFF_SUFFIXES, *HDF5_SUFFIXES)):
            return Content(
                url, "file", "HDF5 and TIFF are read from paths alone: convert it to OME-Zarr (halotile convert)"
            )
        if low.endswith(".zarr"):
            return Content(url, "damaged", "it is a file, or a link that leads nowhere")
        return Content(url, "file", "no file that a run reads")
    if not place.path.is_file():
        return Content(url, "damaged" if place.path.is_symlink() else "nothing", "it is a link that leads nowhere")
    if place.kind == "TIFF":
        return Content(url, "tiff")
    return Content(url, "dataset") if place.inner else _hdf5(url)


def _is_circular(url: str) -> bool:
    try:
        if not is_url(url) and os.path.islink(url):  # noqa: PTH114 - a `Path` apiece costs as much
            os.stat(url)  # noqa: PTH116 - as above
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _hdf5(url: str) -> Content:
    """An HDF5 file: the one kind that has to be opened."""
    try:
        dataset_names(url)
    except StorageError as error:
        return Content(url, "damaged", str(error))
    return Content(url, "hdf5")


def _without_metadata(url: str, known: bool) -> Content:
    """A folder, a file or nothing. A folder that is named as a store is a store that lost its metadata, or has not got it yet."""
    item = Item(url, True) if known else item_at(url)
    if item is None:
        return Content(url, "nothing")
    if not item.folder:
        return _by_name(url)
    if url.lower().endswith(".zarr"):
        return Content(url, "damaged", "it has no Zarr metadata: incomplete, or damaged")
    return Content(url, "folder")
