"""A store in memory: what an output needs of one, and no path."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.outputs.store import Entry, checksum


class MemoryObjects:
    """Objects in a dictionary. As on an object store there are no folders: they are the prefixes of what lies there."""

    place = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def is_occupied(self) -> bool:
        """As of `Store`."""
        return any(not Entry(key).is_part for key in self.objects)

    def put(self, key: str, content: bytes, permit: Callable[[], None] = lambda: None) -> str:
        """As of `Store`."""
        permit()
        self.objects[key] = content
        return checksum(content)

    def get(self, key: str) -> bytes | None:
        """As of `Store`."""
        return self.objects.get(key)

    def checksum(self, key: str) -> str | None:
        """As of `Store`."""
        return checksum(self.objects[key]) if key in self.objects else None

    def remove(self, key: str, permit: Callable[[], None] = lambda: None) -> None:
        """As of `Store`."""
        permit()
        self.objects.pop(key, None)

    def make_folder(self, key: str) -> None:
        """As of `Store`: there are none."""

    def children(self, key: str = "") -> Iterator[Entry]:
        """As of `Store`."""
        above = f"{key}/" if key else ""
        below = {name.removeprefix(above).partition("/")[::2] for name in self.objects if name.startswith(above)}
        yield from {Entry(above + name, is_folder=bool(rest)) for name, rest in below}

    def walk(self, key: str) -> Iterator[Entry]:
        """As of `Store`."""
        yield from (Entry(name) for name in self.objects if name.startswith(f"{key}/"))

    def as_zarr(self) -> ZarrStore:
        """As of `Store`."""
        buffer = default_buffer_prototype().buffer
        return MemoryStore({key: buffer.from_bytes(content) for key, content in self.objects.items()}, read_only=True)
