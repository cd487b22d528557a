"""The output: an OME-Zarr 0.5 image whose array `0` is written in whole write units, each by one writer.

Why no lock is needed: cores partition the volume, a core is whole write units, and a unit is one stored object. A
tile that runs twice writes the same bytes. A unit's object is deleted before it is written again, because a torn one
would otherwise be read and merged. All-fill units leave no object: only the ledger says what is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from pipeline.core.box import Box, Triple
from pipeline.core.ledger import Units
from pipeline.core.plan import Plan
from pipeline.durable import sync
from pipeline.errors import StorageError
from pipeline.storage.ngff import image_attributes
from pipeline.storage.places import local_store

ARRAY = "0"
FINGERPRINT_ATTRIBUTE = "halotile"


def checksum(stored: bytes) -> str:
    """SHA-256 of stored bytes, as `sha256sum` prints it."""
    return hashlib.sha256(stored).hexdigest()


class RecordingStore(WrapperStore[LocalStore]):
    """A local store that makes each object durable and keeps the checksum of what it stored."""

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.checksums: dict[str, str] = {}

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        synced(self._store.root / key)
        self.checksums[key] = checksum(value.to_bytes())


def synced(path: Path) -> None:
    """Flush a file and its folder."""
    sync(path)
    sync(path.parent)


class Output:
    """The output of one plan, opened."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.root = Path(plan.output.url)
        self._store = RecordingStore(local_store(self.root))

    # --- life of the store ------------------------------------------------------------------------------------------

    def state(self) -> str:
        """`absent`, `ours` (this plan's), or `foreign`: anything else that lies at its place."""
        if not is_occupied(self.root):
            return "absent"
        return "ours" if stored_fingerprint(self.root) == self.plan.fingerprint else "foreign"

    def create(self) -> None:
        """Make the group and the empty array, where they are not there yet. A crash half-way is made good."""
        if self.state() == "absent":  # in one write: a group that did not name its plan yet would be foreign
            said = {FINGERPRINT_ATTRIBUTE: {"fingerprint": self.plan.fingerprint, "state": "incomplete"}}
            zarr.create_group(local_store(self.root), zarr_format=3, attributes=said)
        for stale in (*self.root.glob("*.partial"), *self.root.glob(f"{ARRAY}/*.partial")):
            stale.unlink()
        if not (self.root / ARRAY / "zarr.json").is_file():
            self._create_array(local_store(self.root))

    def publish(self) -> None:
        """Name the array in the group's metadata: from now on readers of OME-Zarr find the image."""
        group = zarr.open_group(local_store(self.root), mode="r+", zarr_format=3)
        output = self.plan.output
        ome = image_attributes(name=image_name(self.root), axes=output.axes, space=self.plan.source.space, path=ARRAY)
        group.update_attributes(
            {"ome": ome, FINGERPRINT_ATTRIBUTE: {"fingerprint": self.plan.fingerprint, "state": "complete"}}
        )
        synced(self.root / "zarr.json")

    def _create_array(self, store: Store) -> zarr.Array:
        output = self.plan.output
        return create_array(
            store,
            axes=output.axes,
            channels=self.plan.model.architecture.out_channels,
            shape=self.plan.source.shape,
            dtype=output.dtype,
            chunks=output.chunks,
            shards=output.shards,
        )

    def check_array(self) -> None:
        """Compare the stored array's metadata, all of it, with what the plan makes: readers go by them.

        Raises:
            StorageError: It is not there, or is another array.
        """
        try:
            array = zarr.open_array(self._store, path=ARRAY, mode="r")
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise StorageError(
                f"Output '{self.root}' has no readable array '{ARRAY}' ({error}), though its run directory knows it. "
                "Delete the output and its run directory to start over."
            ) from error
        stored, planned = (found.metadata.to_dict() for found in (array, self._create_array(MemoryStore())))
        different = [key for key in planned if key != "attributes" and stored.get(key) != planned[key]]
        if different:
            told = "; ".join(f"{key} is {stored.get(key)}, planned {planned[key]}" for key in different)
            raise StorageError(
                f"The metadata of output array '{self.root}/{ARRAY}' were changed: {told}. Put '{ARRAY}/zarr.json' back, or "
                "delete the output and its run directory."
            )

    # --- write units ------------------------------------------------------------------------------------------------

    def units(self, core: Box) -> Iterator[Box]:
        """The write units of a core, z slowest."""
        return core.split(self.plan.output.write_unit)

    def keys(self, unit: Box) -> list[str]:
        """The stored objects of a write unit: one, or without shards one a channel."""
        place = self._stored(0, tuple(a // w for a, w in zip(unit.start, self.plan.output.write_unit, strict=True)))
        if self.plan.output.shards or "c" not in self.plan.output.axes:
            return [self._key(place)]
        return [self._key((c, *place[1:])) for c in range(self.plan.model.architecture.out_channels)]

    def _key(self, place: tuple[int, ...]) -> str:
        return "/".join([ARRAY, "c", *map(str, place)])

    def write(self, unit: Box, array: np.ndarray) -> Units:
        """Write one whole unit, durably.

        Args:
            unit: Voxels of the unit.
            array: Its values, (C, Z, Y, X), the output's dtype.

        Returns:
            The checksum of each stored object; None where all values are fill and nothing is stored.
        """
        keys = self.keys(unit)
        for key in keys:
            self._clear(key)
        target = zarr.open_array(self._store, path=ARRAY, mode="r+")
        region = self._stored(slice(None), tuple(slice(a, b) for a, b in zip(unit.start, unit.stop, strict=True)))
        target[region] = in_stored_axes(self.plan.output.axes, array)
        return {key: self._store.checksums.pop(key, None) for key in keys}

    def _clear(self, key: str) -> None:
        """Remove an object and what a killed writer left half-written beside it."""
        path = self.root / key
        if path.parent.is_dir():
            for stale in (path, *path.parent.glob(f"{path.name}.*.partial")):
                stale.unlink(missing_ok=True)

    def stored_checksum(self, key: str) -> str | None:
        """Checksum of the object as it lies in the store; None where there is none."""
        path = self.root / key
        return checksum(path.read_bytes()) if path.is_file() else None

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box as written, (C, Z, Y, X)."""
        array = zarr.open_array(self._store, path=ARRAY, mode="r")
        found = np.asarray(array[self._stored(slice(None), tuple(map(slice, box.start, box.stop)))])
        channels = self.plan.model.architecture.out_channels
        return found.reshape(channels, *box.shape)

    # --- axes -------------------------------------------------------------------------------------------------------

    def _stored(self, channel: Any, spatial: Any) -> tuple[Any, ...]:
        return by_stored_axis(self.plan.output.axes, channel, spatial)


def create_array(
    store: Store,
    *,
    axes: str,
    channels: int,
    shape: Triple,
    dtype: str,
    chunks: Triple,
    shards: Triple | None,
) -> zarr.Array:
    """The empty array `0` of an image: a chunk is of one channel, a shard of all; every object has a checksum."""
    return zarr.create_array(
        store,
        name=ARRAY,
        shape=by_stored_axis(axes, channels, shape),
        chunks=by_stored_axis(axes, 1, chunks),
        shards=by_stored_axis(axes, channels, shards) if shards else None,
        dtype=dtype,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        zarr_format=3,
        dimension_names=list(axes),
        overwrite=False,
    )


def by_stored_axis(axes: str, channel: Any, spatial: Any) -> tuple[Any, ...]:
    """Values by axis, of the channel's and those along z, y, x, for the axes that a stored array has."""
    by_axis = dict(zip("zyx", spatial, strict=True)) | {"c": channel}
    return tuple(by_axis[axis] for axis in axes)


def in_stored_axes(axes: str, array: np.ndarray) -> np.ndarray:
    """Values (C, Z, Y, X) without the axes that a stored array lacks; those have an extent of 1."""
    return array[tuple(slice(None) if axis in axes else 0 for axis in "czyx")]


def image_name(root: Path) -> str:
    """Name of the image in a store."""
    return root.name.removesuffix(".zarr").removesuffix(".ome")


def is_occupied(root: Path) -> bool:
    """Whether anything lies at an output's place, but an empty folder or what a kill left of the first file."""
    if not root.is_dir():
        return root.exists() or root.is_symlink()
    return any(path.suffix != ".partial" for path in root.iterdir())


def stored_fingerprint(root: Path) -> str | None:
    """The fingerprint that a store says it was made for; None where it says none."""
    try:
        attributes = zarr.open_group(local_store(root, read_only=True), mode="r").attrs.asdict()
    except (FileNotFoundError, KeyError, ValueError, OSError):
        return None
    return (attributes.get(FINGERPRINT_ATTRIBUTE) or {}).get("fingerprint")
