"""What a volume is, apart from its voxels: extents, type, chunks, and where it lies in space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from pipeline.core.geometry.box import Triple
from pipeline.core.geometry.lengths import NANOMETERS, unit_of

KNOWN_AXES = ("yx", "cyx", "zyx", "czyx")


@dataclass(frozen=True, slots=True)
class Space:
    """Placement of a volume's voxels in space, along its own axes without the channel.

    Args:
        scale: Size of a voxel an axis, in `units`.
        translation: Centre of voxel 0, in `units`.
        units: The specification's names, such as `nanometer`; None where none is written, or none that is known.
    """

    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]

    @classmethod
    def unknown(cls, ndim: int) -> Space:
        """The space of a volume that states none: voxels of 1 by 1 by 1, in no unit."""
        return cls((1.0,) * ndim, (0.0,) * ndim, (None,) * ndim)

    def __str__(self) -> str:
        """`40 x 4 x 4 nanometer`; a unit an axis where they differ."""
        if self.is_unknown:
            return "unknown"
        sizes, units = [f"{size:g}" for size in self.scale], [unit or "(no unit)" for unit in self.units]
        if len(set(units)) == 1:
            return f"{' x '.join(sizes)} {units[0]}"
        return " x ".join(f"{size} {unit}" for size, unit in zip(sizes, units, strict=True))

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known of the size of a voxel; sizes of 1 in no unit say nothing either."""
        return all(size == 1 for size in self.scale) and not any(self.units)

    @property
    def nanometers(self) -> tuple[float, ...] | None:
        """Size of a voxel an axis, nm; None where it is not known along each."""
        if any(unit not in NANOMETERS for unit in self.units):
            return None
        return tuple(size * NANOMETERS[unit] for size, unit in zip(self.scale, self.units, strict=True) if unit)

    def sound(self) -> Space:
        """The same, with what cannot be a size, an origin or a unit of length taken as unknown."""
        numbers = (*self.scale, *self.translation)
        if not all(isfinite(number) for number in numbers) or any(size <= 0 for size in self.scale):
            return Space.unknown(len(self.scale))
        return Space(self.scale, self.translation, tuple(map(unit_of, self.units)))


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a location is read. A key of `input` of the same name says each.

    Args:
        level: Resolution level of an OME-Zarr group or of a TIFF with a pyramid, 0 the finest.
        axes: Axes as stored, of t, c, z, y, x, or `auto`: as the store names them, else by their number.
        channels: Which channels, by index or name, in this order; empty for all.
    """

    level: int = 0
    axes: str = "auto"
    channels: tuple[int | str, ...] = ()


FINEST = Selection()
"""The finest level, by the axes that the store names."""


@dataclass(frozen=True, slots=True)
class Description:
    """A stored volume.

    Args:
        url: Where it lies.
        level: Resolution level, 0 the finest.
        axes: Its axes as they are read, one of `KNOWN_AXES`.
        channels: Channels that are read; 1 where there is no channel axis.
        shape: Voxels along z, y, x; z is 1 where there is no z axis.
        dtype: numpy's name of the stored type.
        chunks: Extent along z, y, x that is decoded at once.
        space: Placement along the axes other than c.
        metadata_sha256: Digest of the array's metadata document, attributes left out.
        stored: Its axes as stored, by which it is opened again; empty where `axes` are enough to read the same.
        chosen: Which of its channels are read, in this order; empty where all are.
    """

    url: str
    level: int
    axes: str
    channels: int
    shape: Triple
    dtype: str
    chunks: Triple
    space: Space
    metadata_sha256: str
    stored: str = ""
    chosen: tuple[int, ...] = ()

    @property
    def voxels(self) -> int:
        z, y, x = self.shape
        return z * y * x

    @property
    def selection(self) -> Selection:
        """What of the location is read again, to read the same."""
        return Selection(self.level, self.stored or self.axes, self.chosen)

    def identity(self) -> dict[str, object]:
        """What a fingerprint covers of what is read, beside what every volume has."""
        return {"input.channels": list(self.chosen)} if self.chosen else {}

    def to_dict(self) -> dict[str, object]:
        """As plans hold it: fields that came later stand there where they say something."""
        return {key: value for key, value in asdict(self).items() if value or key not in ("stored", "chosen")}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Description:
        values: dict[str, Any] = dict(content)
        space = Space(**{key: tuple(value) for key, value in dict(values["space"]).items()})
        tuples: dict[str, Any] = {key: tuple(values[key]) for key in ("shape", "chunks", "chosen") if key in values}
        return cls(**{**values, **tuples, "space": space})
