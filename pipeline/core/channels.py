"""Which channels of a volume are read: by index or by name, in the order that the network reads them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import StorageError


def chosen_channels(asked: Sequence[int | str], channels: int, names: Sequence[str], url: str) -> tuple[int, ...]:
    """The indices that are asked for; empty where all are read, in the order in which they are stored.

    Args:
        asked: Indices from 0, or names; empty for all.
        channels: How many are stored.
        names: Theirs, in order, as far as they are told.
        url: For messages.

    Raises:
        StorageError: There is no such channel, a name is of several, or one is named twice.
    """
    chosen = tuple(_index(one, channels, names, url) for one in asked)
    if len(set(chosen)) < len(chosen):
        raise StorageError(
            f"input.channels is {list(asked)}, which names a channel of '{url}' more than once. Name each once."
        )
    return () if chosen == tuple(range(channels)) else chosen


def _index(asked: int | str, channels: int, names: Sequence[str], url: str) -> int:
    if isinstance(asked, int) and 0 <= asked < channels:
        return asked
    indices = [index for index, name in enumerate(names[:channels]) if name == asked]
    if len(indices) == 1:
        return indices[0]
    told = ", ".join(f"{index} {name!r}" for index, name in enumerate(names[:channels]) if name)
    there = f"has the channels {told}" if told else f"has {channels} channel(s) and tells no names of them"
    fault = f"is the name of {len(indices)} of them" if indices else "is none of them"
    raise StorageError(
        f"input.channels asks for {asked!r}, which {fault}: '{url}' {there}. Set it to numbers from 0 to {channels - 1}"
        f"{', or names that are there' if told else ''}."
    )
