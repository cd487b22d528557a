"""OME-Zarr metadata: 0.4 and 0.5 read, 0.5 written.

Reading takes only what a run needs and is lenient about the rest: stores in the wild carry `omero` blocks that the
models of the specification refuse. Writing goes through those models (yaozarrs), so what we write is what they mean.
Source: OME-NGFF 0.4 and 0.5, section "multiscales".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yaozarrs import v05

from pipeline.core.volume import Space
from pipeline.errors import StorageError


@dataclass(frozen=True, slots=True)
class Multiscale:
    """What a run needs of an image's metadata.

    Args:
        axes: Axis names in order, such as `("c", "z", "y", "x")`.
        units: Unit an axis, None where none is told.
        paths: Array paths, level 0 first.
        scales: Size of a voxel an axis, a tuple a level.
        translations: Centre of voxel 0 an axis, a tuple a level.
    """

    axes: tuple[str, ...]
    units: tuple[str | None, ...]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...], ...]
    translations: tuple[tuple[float, ...], ...]

    def space(self, level: int, axes: str) -> Space:
        """Placement of a level's voxels, read as `axes`, along those other than c."""
        keep = [i for i, name in enumerate(axes) if name != "c"]
        scale, translation = self.scales[level], self.translations[level]
        return Space(
            tuple(scale[i] for i in keep), tuple(translation[i] for i in keep), tuple(self.units[i] for i in keep)
        )


def read_multiscale(attributes: Mapping[str, Any], url: str) -> Multiscale | None:
    """The first multiscale image in a group's attributes; None where there is none.

    Raises:
        StorageError: There is one, and it cannot be understood.
    """
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not images:
        return None
    try:
        return _parsed(images[0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StorageError(
            f"The OME-Zarr metadata of '{url}' cannot be understood ({type(error).__name__}: {error}). Expected version "
            "0.4 or 0.5: axes with names, datasets with a path and coordinateTransformations. Name the array itself "
            "in input.url, or repair the metadata."
        ) from error


def _parsed(image: Mapping[str, Any]) -> Multiscale:
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image["axes"]]
    datasets = image["datasets"]
    common_scale, common_translation = _transforms(image.get("coordinateTransformations"), len(axes))
    scales, translations = [], []
    for dataset in datasets:
        scale, translation = _transforms(dataset.get("coordinateTransformations"), len(axes))
        scales.append(tuple(a * b for a, b in zip(scale, common_scale, strict=True)))
        placed = zip(translation, common_scale, common_translation, strict=True)
        translations.append(tuple(t * s + c for t, s, c in placed))
    return Multiscale(
        axes=tuple(str(axis["name"]).lower() for axis in axes),
        units=tuple(axis.get("unit") for axis in axes),
        paths=tuple(str(dataset["path"]) for dataset in datasets),
        scales=tuple(scales),
        translations=tuple(translations),
    )


def _transforms(transforms: Sequence[Mapping[str, Any]] | None, ndim: int) -> tuple[list[float], list[float]]:
    scale, translation = [1.0] * ndim, [0.0] * ndim
    for transform in transforms or ():
        if transform["type"] == "scale":
            scale = [float(v) for v in transform["scale"]]
        elif transform["type"] == "translation":
            translation = [float(v) for v in transform["translation"]]
    if len(scale) != ndim or len(translation) != ndim:
        raise ValueError(f"{ndim} axes, but a transformation of {len(scale)} or {len(translation)} numbers")
    return scale, translation


def image_attributes(*, name: str, axes: str, space: Space, path: str = "0") -> dict[str, Any]:
    """The `ome` attribute of an image of one level, version 0.5.

    Args:
        name: Name of the image.
        axes: Its axes in order, such as `czyx`.
        space: Placement along the axes other than c.
        path: Path of the array.
    """
    spatial = iter(zip(space.scale, space.translation, space.units, strict=True))
    described, scale, translation = [], [], []
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
    return image.model_dump(mode="json", exclude_none=True)
