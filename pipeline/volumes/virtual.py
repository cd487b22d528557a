"""HDF5 datasets whose voxels lie in other files: each is looked for, since HDF5 reads what it does not find as fill.

Sources: HDF5 reference manual, H5Pset_virtual and H5Pset_external; the order in which HDF5 looks for a relative name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StorageError
from pipeline.volumes.file_metadata import NAMED, imported

DEEPEST = 8
"""Virtual datasets of virtual datasets, at most."""


@dataclass(frozen=True)
class Elsewhere:
    """A dataset whose voxels lie in other files; sliced as numpy's arrays are.

    Args:
        dataset: Of h5py.
        needed: Bytes that each file has at least.
        url: For errors.
    """

    dataset: Any
    needed: dict[Path, int]
    url: str

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.dataset.shape
        return shape

    @property
    def dtype(self) -> np.dtype:
        dtype: np.dtype = self.dataset.dtype
        return dtype

    @property
    def attrs(self) -> Any:
        return self.dataset.attrs

    def __getitem__(self, selection: Any) -> Any:
        """Voxels, if all files are still there when they were read: one that went is read as fill.

        Raises:
            StorageError: One is not there, or has become shorter.
        """
        voxels = self.dataset[selection]
        _check_files(self.needed, self.url)
        return voxels


def located(dataset: Any, url: str) -> Any:
    """The dataset, or what watches the other files that it lies in.

    Raises:
        StorageError: One is not there, is too short, or does not hold what the dataset takes from it.
    """
    if not dataset.is_virtual and not dataset.external:
        return dataset
    needed: dict[Path, int] = {}
    for path, length in _files(dataset, url, 0):
        needed[path] = max(length, needed.get(path, 0))
    _check_files(needed, url)
    return Elsewhere(dataset, needed, url)


def _files(dataset: Any, url: str, depth: int) -> Iterator[tuple[Path, int]]:
    """The other files of a dataset, and the bytes that each must have."""
    own = Path(dataset.file.filename)
    if depth > DEEPEST:
        raise StorageError(
            f"Input '{url}' is a virtual dataset of virtual datasets, more than {DEEPEST} deep. Copy it into one file."
        )
    if dataset.external:
        yield from _external(dataset.external, dataset.nbytes, own)
    if dataset.is_virtual:
        sources = dataset.virtual_sources()
        if not sources:
            raise StorageError(
                f"Input '{url}' is a virtual dataset without a source: nothing is stored of it. Name another dataset."
            )
        by_file: dict[str, list[Any]] = {}
        for source in sources:
            by_file.setdefault(source.file_name, []).append(source)
        for name, used in by_file.items():
            yield from _virtual(dataset, own, name, used, url, depth)


def _external(parts: Sequence[tuple[str, int, int]], nbytes: int, own: Path) -> Iterator[tuple[Path, int]]:
    """H5Pset_external: so many bytes of each file after an offset, the last without an end."""
    folder = os.environ.get("HDF5_EXTFILE_PREFIX", "").replace("${ORIGIN}", str(own.parent))
    for name, offset, size in parts:
        length = min(size, nbytes)
        yield Path(folder, name), offset + length
        nbytes -= length


def _virtual(
    dataset: Any, own: Path, name: str, used: Sequence[Any], url: str, depth: int
) -> Iterator[tuple[Path, int]]:
    h5py = imported("h5py", url)
    if name == ".":
        yield from _inside(h5py, dataset.file, own, used, url, depth)
        return
    path = _resolve(name, own)
    yield path, 1
    if not path.is_file():
        return
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StorageError(
            f"Input '{url}' takes voxels from '{path}', which is no readable HDF5 file. Copy it again."
        ) from error
    with file:
        yield from _inside(h5py, file, path, used, url, depth)


def _inside(h5py: Any, file: Any, path: Path, used: Sequence[Any], url: str, depth: int) -> Iterator[tuple[Path, int]]:
    """What the sources in one file lie in, in turn."""
    for source in {one.dset_name: one for one in used}.values():
        pattern = "%b" in source.dset_name
        dataset = None if pattern else file.get(source.dset_name)
        if not pattern and not isinstance(dataset, h5py.Dataset):
            raise StorageError(
                f"Input '{url}' takes voxels from dataset '{source.dset_name}' of '{path}', which is not there."
            )
        if dataset is not None:
            _check_stored(dataset, path, url)
            yield from _files(dataset, url, depth + 1)


def _check_stored(dataset: Any, path: Path, url: str) -> None:
    if not dataset.is_virtual and not dataset.external and dataset.size and not dataset.id.get_storage_size():
        raise StorageError(
            f"Input '{url}' takes voxels from dataset '{dataset.name}' of '{path}', of which nothing is stored. Copy it again."
        )


def _resolve(name: str, own: Path) -> Path:
    """The file that HDF5 would open by a name: beside the dataset's own, or in the working directory."""
    folders = [
        prefix.replace("${ORIGIN}", str(own.parent))
        for prefix in os.environ.get("HDF5_VDS_PREFIX", "").split(":")
        if prefix
    ]
    places = [Path(folder, name) for folder in (*folders, str(own.parent), ".")]
    return next((place for place in places if place.is_file()), own.parent / name)


def _check_files(needed: dict[Path, int], url: str) -> None:
    bad = [fault for path, length in needed.items() if (fault := _wrong(path, length))]
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise StorageError(
            f"Input '{url}' takes its voxels from other files, and HDF5 reads what it does not find there as fill: "
            f"{'; '.join(bad[:NAMED])}{more}. Put them where they were, or copy the dataset into one file (h5repack)."
        )


def _wrong(path: Path, length: int) -> str | None:
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"'{path}' is not there ({error.strerror})"
    return f"'{path}' has {size:,} bytes instead of {length:,}" if size < length else None
