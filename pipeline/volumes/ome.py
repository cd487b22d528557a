"""OME-Zarr metadata: 0.4 and 0.5 read, 0.5 written.

Reading takes only what a run needs and is lenient about the rest: stores in the wild carry `omero` blocks that the
models of the specification refuse. Writing goes through those models (yaozarrs), so what we write is what they mean.
Source: OME-NGFF 0.4 and 0.5, section "multiscales".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Any

from yaozarrs import v05

from pipeline.core.geometry.axes import Told
from pipeline.core.geometry.lengths import unit_of
from pipeline.core.volume import Space
from pipeline.errors import StorageError
from pipeline.volumes.transforms import Diagonal, NotPlacedError, diagonal_of, is_size


@dataclass(frozen=True, slots=True)
class Multiscale:
    """What a run needs of an image's metadata.

    Args:
        url: Of the group.
        name: Of the image; empty where it has none.
        axes: Their names as they are written.
        units: Unit of each axis as it is written.
        paths: Array paths, level 0 first.
        transforms: What places each level, as it is written, and what places the whole after it.
        channels: Names of its channels, as `omero` has them; empty where it has none.
    """

    url: str
    name: str
    axes: Told
    units: tuple[Any, ...]
    paths: tuple[str, ...]
    transforms: tuple[tuple[Any, Any], ...]
    channels: tuple[str, ...] = ()

    def level_of(self, path: str) -> int | None:
        """The level that an array is, by its path below the group; None where it is none."""
        return next((i for i, known in enumerate(self.paths) if normpath(known.strip("/")) == path), None)

    def space(self, level: int, stored: str) -> tuple[Space, tuple[str, ...]]:
        """Placement of a level's voxels along z, y, x; and what of it is not known, and why.

        Args:
            level: Which.
            stored: A letter per stored axis, as it is read.

        Raises:
            StorageError: The metadata cannot be understood.
        """
        spatial = [axis for axis in "zyx" if axis in stored]
        keep = [stored.index(axis) for axis in spatial]
        unknown = Space.unknown(len(keep))
        if len(self.axes.names) != len(stored):
            return unknown, (f"voxel size unknown: the metadata of '{self.url}' have {len(self.axes.names)} axes",)
        try:
            placed = self._placed(level)
        except NotPlacedError as error:
            return unknown, (f"voxel size unknown: {error} for level {level} of '{self.url}'",)
        other = [self.axes.letters[i] for i in keep if self.axes.letters[i] in ("c", "t")]
        if other:
            return unknown, (f"voxel size unknown: an axis that is read as space is told as {self.axes}",)
        scale, translation = ([values[i] for i in keep] for values in (placed.scale, placed.translation))
        if not all(map(is_size, scale)):
            return unknown, (
                f"voxel size unknown: a scale of {_plain(scale)} (along {', '.join(spatial)}) is told by '{self.url}'",
            )
        warnings = []
        if not all(abs(value) < float("inf") for value in translation):
            warnings.append(
                f"origin unknown, taken as 0: a translation of {_plain(translation)} is told by '{self.url}'"
            )
            translation = [0.0] * len(keep)
        units = [unit_of(self.units[i]) for i in keep]
        strange = {
            _short(self.units[i]): None
            for i, unit in zip(keep, units, strict=True)
            if unit is None and self.units[i] not in (None, "")
        }
        warnings += [
            f"unit unknown: {unit} is no unit of length that the specification has, told by '{self.url}'"
            for unit in strange
        ]
        space = Space(tuple(scale), tuple(translation), tuple(units))
        if space.is_unknown and not strange:
            warnings.append(f"voxel size unknown: '{self.url}' tells sizes of 1 in no unit")
        elif not any(units) and not strange:
            warnings.append(f"unit unknown: '{self.url}' tells none of a voxel size of {_plain(scale)}")
        return space, tuple(warnings)

    def _placed(self, level: int) -> Diagonal:
        own, common = self.transforms[level]
        ndim = len(self.axes.names)
        try:
            return diagonal_of(own, ndim).then(diagonal_of(common, ndim, optional=True))
        except NotPlacedError:
            raise
        except ValueError as error:
            raise _not_understood(self.url, error) from error


def read_multiscales(attributes: Mapping[str, Any], url: str) -> list[Multiscale]:
    """The multiscale images in a group's attributes; none where there are none.

    Raises:
        StorageError: There is one, and it cannot be understood.
    """
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not images:
        return []
    try:
        if not isinstance(images, list | tuple):
            raise TypeError("multiscales is no list")
        return [_parsed(image, url, _channel_names(attributes, ome)) for image in images]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise _not_understood(url, error) from error


def first_of(images: Sequence[Multiscale]) -> tuple[str, ...]:
    """A warning where one of several images is taken, which names them."""
    if len(images) < 2:
        return ()
    names = "; ".join(f"'{image.name}' ({', '.join(image.paths[:4])})" for image in images[:8])
    other = f"{images[0].url.rstrip('/')}/{images[1].paths[0] if images[1].paths else '0'}"
    warning = f"'{images[0].url}' holds {len(images)} multiscale images, {names}: the first is read. To read another, name its array, such as '{other}'"
    return (warning,)


def _not_understood(url: str, error: Exception) -> StorageError:
    return StorageError(
        f"The OME-Zarr metadata of '{url}' cannot be understood ({type(error).__name__}: {error}). Expected version "
        "0.4 or 0.5: axes with names, datasets with a path and coordinateTransformations. Name the array itself "
        "in input.url, or repair the metadata."
    )


def _channel_names(*places: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of the channels of the first `omero` that has any; a channel without one has an empty name."""
    for place in places:
        omero = place.get("omero")
        channels = omero.get("channels") if isinstance(omero, Mapping) else None
        if isinstance(channels, list | tuple):
            labels = [one.get("label") if isinstance(one, Mapping) else None for one in channels]
            return tuple(label if isinstance(label, str) else "" for label in labels)
    return ()


def _parsed(image: Mapping[str, Any], url: str, channels: tuple[str, ...]) -> Multiscale:
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image["axes"]]
    datasets, common = image["datasets"], image.get("coordinateTransformations")
    return Multiscale(
        url=url,
        name=image["name"] if isinstance(image.get("name"), str) else "",
        axes=Told("multiscales", tuple(axis["name"] for axis in axes), tuple(axis.get("type") for axis in axes)),
        units=tuple(axis.get("unit") for axis in axes),
        paths=tuple(str(dataset["path"]) for dataset in datasets),
        transforms=tuple((dataset.get("coordinateTransformations"), common) for dataset in datasets),
        channels=channels,
    )


def _plain(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _short(value: Any) -> str:
    return repr(value)[:60]


def image_attributes(*, name: str, axes: str, space: Space, path: str = "0") -> dict[str, Any]:
    """The `ome` attribute of an image of one level, version 0.5.

    Args:
        name: Name of the image.
        axes: Its axes in order, such as `czyx`.
        space: Placement along the axes other than c.
        path: Path of the array.
    """
    space = space.sound()  # plans of earlier versions may hold whatever the metadata said
    spatial = iter(zip(space.scale, space.translation, space.units, strict=True))
    described: list[v05.ChannelAxis | v05.SpaceAxis] = []
    scale: list[float] = []
    translation: list[float] = []
    for axis in axes:
        if axis == "c":
            described.append(v05.ChannelAxis(name="c"))
            size, origin = 1.0, 0.0
        else:
            size, origin, unit = next(spatial)
            described.append(v05.SpaceAxis(name=axis, unit=unit))
        scale.append(size)
        translation.append(origin)
    transforms: list[Any] = [v05.ScaleTransformation(scale=scale)]
    if any(translation):
        transforms.append(v05.TranslationTransformation(translation=translation))
    dataset = v05.Dataset(path=path, coordinateTransformations=transforms)
    image = v05.Image(multiscales=[v05.Multiscale(name=name, axes=described, datasets=[dataset])])
    attributes = image.model_dump(mode="json", exclude_none=True)
    json.dumps(attributes, allow_nan=False)  # a bare NaN is no JSON, and readers fail on it
    return attributes
