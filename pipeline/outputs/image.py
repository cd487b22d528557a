"""The image of one plan: a group of levels, with the documents that name it to readers of OME-Zarr 0.5."""

from __future__ import annotations

from functools import cached_property

from pipeline.core.ledger import TileRecord
from pipeline.core.plan import Plan
from pipeline.errors import StorageError
from pipeline.outputs.documents import Comparison, stored
from pipeline.outputs.level import DOCUMENT, Contents, Level
from pipeline.outputs.metadata import FINEST, Metadata, stored_fingerprint
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.store import Store, store_at
from pipeline.places.durable import in_words

_EVIDENCE = 8
"""Objects of which one must be as the ledger says, to know a store whose metadata do not name their plan any more."""


class Image:
    """The image of one plan, opened.

    Args:
        plan: What it is of.
        store: Where it lies; at the plan's URL where None.
    """

    def __init__(self, plan: Plan, store: Store | None = None) -> None:
        self.plan = plan
        self.store = store or store_at(plan.output.url)
        finest = Level(
            self.store,
            FINEST,
            axes=plan.output.axes,
            channels=plan.model.architecture.out_channels,
            shape=plan.source.shape,
            dtype=plan.output.dtype,
            chunks=plan.output.chunks,
            shards=plan.output.shards,
        )
        self.levels = (finest,)

    @property
    def finest(self) -> Level:
        """The level that the network's tiles are written to."""
        return self.levels[0]

    # --- whose it is ------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """`absent`, `ours` (this plan's), or `foreign`: anything else that lies at its place."""
        if not self.store.is_occupied():
            return "absent"
        fingerprint = stored_fingerprint(self.store)
        if fingerprint is None:
            return "ours" if self._is_ours_by_evidence() else "foreign"
        return "ours" if fingerprint == self.plan.fingerprint else "foreign"

    def _is_ours_by_evidence(self) -> bool:
        """Whether a store that names no plan was made by ours, whose run directory lies beside it.

        A power cut leaves documents empty, and nothing else; damage leaves objects that the ledger vouches for.
        """
        directory = RunDirectory(self.plan.output.url)
        try:
            plan = directory.load_plan()
        except StorageError:
            return False
        if plan is None or plan.fingerprint != self.plan.fingerprint:
            return False
        names = {entry.name for entry in self.store.children() if not entry.is_part}
        is_bare = bool(names) and names <= self._names
        return (is_bare and stored(self.store, DOCUMENT) is None) or self._is_vouched_for(directory)

    def _is_vouched_for(self, directory: RunDirectory) -> bool:
        count = 0
        for record in directory.records():
            if (
                not isinstance(record, TileRecord)
                or record.state != "done"
                or record.fingerprint != self.plan.fingerprint
            ):
                continue
            vouched = {key: digest for key, digest in record.units.items() if digest}
            if any(self.store.checksum(key) == digest for key, digest in vouched.items()):
                return True
            count += len(vouched)
            if count >= _EVIDENCE:
                return False
        return False

    # --- its documents ----------------------------------------------------------------------------------------------

    def create(self) -> list[str]:
        """Make the group and the empty arrays, or mend their metadata; return what was damaged.

        A crash half-way is made good, and keys of others stay. Until it is published, the group names no image.
        """
        with in_words():
            for level in self.levels:
                self.store.make_folder(level.name)
            return self._metadata.put(complete=self._metadata.is_complete())

    def reopen(self, plan: Plan) -> None:
        """Take the image from readers, which tiles of another input are to replace; from now on it is `plan`'s."""
        if self.state() == "ours":
            with in_words():
                self._metadata.reopen(plan.fingerprint)

    def publish(self) -> list[str]:
        """Name the levels in the group's metadata: from now on readers of OME-Zarr find the image. Gives what was otherwise."""
        with in_words():
            return self._metadata.put(complete=True)

    def drop_axis_units(self) -> None:
        """Remove units that an earlier plan of the same output wrote and this one does not have."""
        with in_words():
            self._metadata.drop_axis_units()

    def metadata(self, *, complete: bool, names: tuple[str, ...] = ()) -> Comparison:
        """What the stored metadata, which readers go by, are against the plan's; see `Metadata.compared`."""
        with in_words():
            return self._metadata.compared(complete=complete or self._metadata.is_complete(), names=names)

    @cached_property
    def _metadata(self) -> Metadata:
        return Metadata(self.store, self.plan, self.levels)

    @property
    def _names(self) -> set[str]:
        return {DOCUMENT, *(level.name for level in self.levels)}

    # --- what else lies there ---------------------------------------------------------------------------------------

    def contents(self) -> Contents:
        """What lies in the store beside our documents and objects; lists every folder of ours."""
        contents = Contents()
        with in_words():
            for entry in self.store.children():
                if entry.name not in self._names:
                    (contents.parts if entry.is_part else contents.others).append(entry.key)
            for level in self.levels:
                level.sort(contents)
        return contents

    def sweep(self) -> list[str]:
        """Remove what killed writers left, and objects that no write unit has. Nobody may be writing. Gives the latter's keys."""
        contents = self.contents()
        with in_words():
            for key in (*contents.parts, *contents.strays):
                self.store.remove(key)
        return contents.strays
