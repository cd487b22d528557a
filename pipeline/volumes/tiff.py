"""A TIFF as tifffile's own view of it, a page at a time, described and left where it is.

Sources: TIFF 6.0; ImageJ's TIFF metadata; the OME-XML of OME-TIFF, 2016-06.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from math import prod
from typing import Any
from xml.etree import ElementTree

import zarr

from pipeline.core.geometry.lengths import unit_of
from pipeline.errors import StorageError
from pipeline.volumes.file_metadata import NAMED, Found, Place, imported, numbers_of, shown, strange_units
from pipeline.volumes.transforms import is_size

PAGE_BYTES = 2**24
"""Pages in strips are decoded whole up to this size, strip by strip above: strips are often a few rows, and each costs a call."""


_DAMAGE = re.compile(
    r"invalid page offset|invalid offset to |corrupted tag list|circular|ImageJ series metadata invalid|failed to reshape"
    r"|missing required tags|invalid value offset"
)
"""What tifffile logs of a file whose pages cannot all be found, before it goes on with those that can."""


def open_tiff(place: Place, url: str, level: int) -> Found:
    """A series of pages as tifffile's zarr store, described. The file is closed when the array is let go."""
    file, series = open_series(place, url)
    try:
        if level >= len(series.levels):
            raise StorageError(
                f"input.level is {level}, but '{url}' has levels 0 to {len(series.levels) - 1}. Choose one of them."
            )
        chosen = series.levels[level]
        stored = _check_whole(file, chosen, url)
        files = tuple(dict.fromkeys(str(page.parent.filehandle.path) for page in chosen)) if _is_apart(chosen) else ()
        sizes, units, warnings = _tiff_places(file, series)
        coarser = _coarser(series, chosen)
        array = zarr.open_array(series.aszarr(level=level, chunkmode=_chunk_mode(chosen)), mode="r")
    except BaseException:
        file.close()
        raise
    weakref.finalize(array, file.close)
    origins = {axis: (coarser[axis] - 1) / 2 * size for axis, size in sizes.items() if axis in coarser}
    sizes = {axis: size * coarser.get(axis, 1) for axis, size in sizes.items()}
    return Found(array, array.chunks, chosen.axes.lower(), sizes, origins, units, warnings, stored, files)


def open_series(place: Place, url: str) -> tuple[Any, Any]:
    """The open file, and its image: the only series, or the one that all others are smaller than (thumbnails, labels)."""
    tifffile = imported("tifffile", url)
    with _complaints("tifffile") as complaints:
        file = tifffile.TiffFile(place.path)
        try:
            series = sorted(file.series, key=lambda one: one.size, reverse=True)
            damage = next((text for text in complaints if _DAMAGE.search(text)), None) or _broken_chain(file)
            if damage or not series:
                raise StorageError(
                    f"Input '{url}' is a TIFF whose pages cannot all be found ({damage or 'it has none'}). "
                    "The file is damaged or incomplete: copy it again."
                )
            if len(series) > 1 and series[1].size == series[0].size:
                images = "; ".join(f"{one.axes} {one.shape}" for one in islice(series, NAMED))
                raise StorageError(
                    f"Input '{url}' holds {len(series)} images ({images}), and none is larger than all others. "
                    "Save the one that is meant in a file of its own."
                )
        except BaseException:
            file.close()
            raise
    return file, series[0]


def _broken_chain(file: Any) -> str | None:
    """What is wrong where the chain of pages ends: zeros there look as an end of it, and are a file copied in part."""
    handle = file.filehandle
    handle.seek(file.pages[len(file.pages) - 1].offset)
    tags = handle.read(file.tiff.tagnosize)
    return None if any(tags) else f"page {len(file.pages) - 1} is empty"


class _Listener(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextmanager
def _complaints(logger: str) -> Iterator[list[str]]:
    """Collect what a logger is given meanwhile: tifffile logs damage, and reads what is left."""
    messages: list[str] = []
    handler = _Listener(messages)
    listened = logging.getLogger(logger)
    listened.addHandler(handler)
    try:
        yield messages
    finally:
        listened.removeHandler(handler)


def _is_apart(series: Any) -> bool:
    """Whether each page has its own place, perhaps in a file of its own; else all lie in a row."""
    return series.dataoffset is None


def _check_whole(file: Any, series: Any, url: str) -> tuple[int, int]:
    """Refuse what would be read as zeros, or raise in mid-run; return how many strips or tiles are stored, of how many.

    Raises:
        StorageError: Pages are missing, lie behind the file's end, or are compressed in a way that cannot be read here.
    """
    stored = total = 0
    for number, plane in enumerate(series if _is_apart(series) else ()):
        if plane is None:
            missing = sum(one is None for one in series)
            raise StorageError(
                f"Input '{url}' is a TIFF of {len(series)} planes, {missing} of which are in no file that is there; they "
                "would be read as zeros. Copy it again; of an OME-TIFF, put its other files beside it."
            )
        stored += _check_page(plane, number, url)
        total += len(plane.databytecounts)
    if _is_apart(series) and not stored:
        raise StorageError(
            f"Input '{url}' is a TIFF of {len(series)} pages, but nothing is stored of any. Copy it again."
        )
    page = series.keyframe
    behind = 0 if _is_apart(series) else series.dataoffset + series.nbytes
    if behind > file.filehandle.size:
        raise StorageError(
            f"Input '{url}' should hold {behind} bytes, but the file ends at {file.filehandle.size}. Copy it again."
        )
    decoders = imported("tifffile", url).TIFF.DECOMPRESSORS
    try:
        decoders[page.compression]
    except KeyError as error:
        raise StorageError(
            f"Input '{url}' is a TIFF with the compression {page.compression!r}, which tifffile cannot read alone. "
            "Run: pip install imagecodecs"
        ) from error
    return (stored, total) if _is_apart(series) else (1, 1)


def _check_page(page: Any, number: int, url: str) -> int:
    """How many strips or tiles of a page are stored; sparse ones have neither place nor bytes.

    Raises:
        StorageError: One lies behind the end of its file, or some have lost their places.
    """
    offsets, counts, end = page.dataoffsets, page.databytecounts, page.parent.filehandle.size
    least = prod(page.keyframe.chunked) if page.keyframe.chunked else len(offsets)
    whole = len(offsets) == len(counts) >= least and all(
        (offset == 0) == (count == 0) for offset, count in zip(offsets, counts, strict=False)
    )
    behind = max((offset + count for offset, count in zip(offsets, counts, strict=False)), default=0)
    if whole and behind <= end:
        return sum(count > 0 for count in counts)
    fault = (
        f"page {number} should reach to byte {behind}, but its file ends at {end}"
        if whole
        else f"page {number} lost places of its data"
    )
    raise StorageError(f"Input '{url}' is a damaged TIFF: {fault}. Copy it again.")


def _chunk_mode(series: Any) -> int:
    """0: tiles and strips are what is decoded at once; 2: whole pages are."""
    page = series.keyframe
    return 0 if page.is_tiled or page.nbytes > PAGE_BYTES else 2


def _coarser(series: Any, chosen: Any) -> dict[str, int]:
    """How many voxels of level 0 one of the chosen level spans, by axis."""
    pairs = zip(series.axes.lower(), series.shape, chosen.shape, strict=True)
    return {axis: max(round(fine / coarse), 1) for axis, fine, coarse in pairs}


Places = tuple[dict[str, float], dict[str, str | None], tuple[str, ...]]
"""Size and unit by axis, and warnings of what is written and not believed."""


def _tiff_places(file: Any, series: Any) -> Places:
    """Of ImageJ's metadata or OME-XML; plain TIFF has dots per inch, which mean nothing here."""
    if file.is_ome and file.ome_metadata:
        return _ome_places(file.ome_metadata, file.series.index(series))
    return _imagej_places(file.imagej_metadata, series) if file.imagej_metadata else ({}, {}, ())


def _imagej_places(metadata: Mapping[str, Any], series: Any) -> Places:
    spacing = metadata.get("spacing", 1.0)
    sizes = {
        "z": abs((numbers_of(spacing) or [0.0])[0]),  # Fiji writes a negative one for stacks that go down
        "y": _inverse(series.keyframe, "YResolution"),
        "x": _inverse(series.keyframe, "XResolution"),
    }
    unit = unit_of(metadata.get("unit", ""))
    if unit is None and set(sizes.values()) == {1.0}:
        return {}, {}, ()
    used = {axis: size for axis, size in sizes.items() if axis in series.axes.lower() or axis != "z"}
    if not all(map(is_size, used.values())):
        return {}, {}, (f"voxel size unknown: ImageJ's metadata come to {_spelled(used)}",)
    units: dict[str, str | None] = dict.fromkeys(used, unit)
    return used, units, tuple(strange_units(dict.fromkeys(used, metadata.get("unit")), units))


def _inverse(page: Any, tag: str) -> float:
    """Length per pixel, of a tag of pixels per length; 1 where the tag is absent, 0 where its value makes no sense."""
    entry = page.tags.get(tag)
    if entry is None:
        return 1.0
    try:
        count, length = entry.value
        return length / count if count else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _ome_places(xml: str, index: int) -> Places:
    """Physical sizes of the `index`-th image of an OME-XML; micrometre where it names no unit (OME 2016-06, Pixels)."""
    try:
        pixels = [node for node in ElementTree.fromstring(xml).iter() if node.tag.endswith("}Pixels")]
    except ElementTree.ParseError:
        return {}, {}, ("voxel size unknown: the OME-XML cannot be read",)
    attributes = pixels[index].attrib if index < len(pixels) else {}
    written = {
        axis: attributes[f"PhysicalSize{axis.upper()}"] for axis in "zyx" if f"PhysicalSize{axis.upper()}" in attributes
    }
    sizes = {axis: (numbers_of(value) or [0.0])[0] for axis, value in written.items()}
    if not all(map(is_size, sizes.values())):
        return {}, {}, (f"voxel size unknown: PhysicalSize is {_spelled(written)} in the OME-XML",)
    spelled = {axis: attributes.get(f"PhysicalSize{axis.upper()}Unit", "um") for axis in sizes}
    units = {axis: unit_of(unit) for axis, unit in spelled.items()}
    return sizes, units, tuple(strange_units(spelled, units))


def _spelled(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {shown(value)}" for axis, value in values.items())
