"""What a volume is, apart from its voxels: extents, type, chunks, and where it lies in space."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.box import Triple

KNOWN_AXES = ("yx", "cyx", "zyx", "czyx")


@dataclass(frozen=True, slots=True)
class Space:
    """Placement of a volume's voxels in space, along its own axes without the channel.

    Args:
        scale: Size of a voxel an axis, in `units`.
        translation: Centre of voxel 0, in `units`.
        units: UDUNITS names such as `nanometer`; None where the source names none.
    """

    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]

    @classmethod
    def unknown(cls, ndim: int) -> Space:
        return cls((1.0,) * ndim, (0.0,) * ndim, (None,) * ndim)


@dataclass(frozen=True, slots=True)
class Description:
    """A stored volume.

    Args:
        url: Where it lies.
        level: Resolution level, 0 the finest.
        axes: Its axes as stored, one of `KNOWN_AXES`.
        channels: Channels; 1 where there is no channel axis.
        shape: Voxels along z, y, x; z is 1 where there is no z axis.
        dtype: numpy's name of the stored type.
        chunks: Extent along z, y, x that is decoded at once.
        space: Placement along the axes other than c.
        metadata_sha256: Digest of the array's metadata document, attributes left out.
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

    @property
    def voxels(self) -> int:
        z, y, x = self.shape
        return z * y * x

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Description:
        space = Space(**{key: tuple(value) for key, value in dict(content["space"]).items()})
        triples = {key: tuple(content[key]) for key in ("shape", "chunks")}
        return cls(**{**content, **triples, "space": space})
