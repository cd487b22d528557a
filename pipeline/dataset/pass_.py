"""One pass over a dataset: who may do it, what is logged of it, and its summary, kept up to date meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from pipeline import stages
from pipeline.dataset.catalogue import Entry, read_catalogue
from pipeline.dataset.outcome import Outcome, read_mark
from pipeline.dataset.search import LeftOut
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.summary import FILES, Summary
from pipeline.dataset.volume import Member
from pipeline.errors import ConfigError, StorageError
from pipeline.logs import logged
from pipeline.places.objects import ObjectStore, told
from pipeline.planning.ensemble import check_alike, digest, named_networks
from pipeline.registry import with_model

log = logging.getLogger("pipeline")

PAGE_SECONDS = 10.0
"""Between two writings of the summary while it grows."""


class Pass:
    """A pass over a dataset. Outcomes are told to it, and it keeps the summary.

    Args:
        config: The set, its model a file.
        volumes: That it goes over.
        known: What earlier passes say of others.
        left_out: What was found that is no volume.
    """

    def __init__(
        self,
        config: DatasetConfig,
        volumes: Sequence[Member],
        known: Sequence[Outcome] = (),
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.config, self.volumes = config, volumes
        self._outcomes = {outcome.name: outcome for outcome in known}
        names = {volume.name for volume in volumes} | set(self._outcomes)
        lines = [f"{one.url}: {one.why}" for one in left_out]
        for line in lines:
            log.warning("left out: %s", line)
        self._summary = Summary(config.output.url, _source(config), _now(), len(names), left_out=lines)
        self._written = float("-inf")
        self._taken_up: set[str] = set()
        self.failed: list[Outcome] = []

    @property
    def summary(self) -> Summary:
        return replace(self._summary, outcomes=list(self._outcomes.values()))

    def tell(self, outcome: Outcome) -> None:
        """Take up what became of a volume."""
        self._outcomes[outcome.name] = outcome
        self._taken_up.add(outcome.name)
        if outcome.state == "failed":
            self.failed.append(outcome)
        if time.monotonic() - self._written > PAGE_SECONDS:
            self._write()

    def close(self) -> None:
        """It is over, in whatever way."""
        self._summary = replace(self._summary, ended=_now())
        self._write()
        log.info("%s", self.summary.line())

    def _write(self) -> None:
        """A disk that is full costs the page, not the pass."""
        home = self.config.home
        self._look_again()
        try:
            self.summary.write(home)
            if self.config.staging:
                self._send(self.config.output.url)
        except (OSError, StorageError) as error:
            log.warning("the summary in '%s' is not up to date: %s", home, error)
        self._written = time.monotonic()

    def _look_again(self) -> None:
        """What others have done meanwhile, so that the last to write does not tell what was before."""
        for name in self._outcomes.keys() - self._taken_up:
            mark = read_mark(self.config.home / name)
            if mark and mark.ended > self._outcomes[name].ended:
                self._outcomes[name] = mark

    def _send(self, url: str) -> None:
        store = ObjectStore(url)
        with told(url, "take the summary"):
            for name in FILES:
                store.send(self.config.home / name, name)


@contextmanager
def log_pass(config: DatasetConfig, *, alone: bool, stage: str) -> Iterator[None]:
    """While open, log in the set's own run directory.

    Args:
        config: The set.
        alone: Whether to refuse where another process goes over it, and to heed `halotile cancel`.
        stage: reprocess or watch.

    Raises:
        StorageError: Another one is at it, or its folder cannot be written.
    """
    directory = config.directory
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        config.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder '{config.home}' of all outputs cannot be made ({error}). Choose another output.url or staging, or "
            "change the permissions above it."
        ) from error
    with logged(directory.log_path, config.log, run=config.home.name, stage=stage):
        if not alone:
            yield
            return
        with stages.driving(directory):
            yield


def volumes_of(config: DatasetConfig, *, moved: bool = False) -> tuple[list[Member], tuple[LeftOut, ...]]:
    """All volumes of the catalogue, and what was found that is none.

    Args:
        config: The set.
        moved: Whether volumes may lie elsewhere than when they were done.

    Raises:
        ConfigError, StorageError, ModelError: The catalogue or the model cannot be read.
    """
    resolved = with_one_model(config)
    catalogue = read_catalogue(config.source, without=places(config))
    _check_names(catalogue)
    return [Member(resolved, entry, moved=moved) for entry in catalogue], catalogue.left_out


def places(config: DatasetConfig) -> tuple[str, ...]:
    """Where a set writes: nothing there is a volume of it."""
    return tuple(dict.fromkeys((config.output.url, str(config.home))))


def is_summary(name: str) -> bool:
    """Whether a volume's folder would lie where a file of the summary does."""
    return name.lower() in FILES


def _check_names(catalogue: Iterable[Entry]) -> None:
    """Refuse volumes whose folders would lie where the summary does.

    Raises:
        ConfigError: There is one.
    """
    taken = [entry.name for entry in catalogue if is_summary(entry.name)]
    if taken:
        raise ConfigError(
            f"Volumes cannot be called {', '.join(taken)}: these are the files of the dataset's summary. Give them other names in "
            "the catalogue."
        )


def with_one_model(config: DatasetConfig) -> DatasetConfig:
    """A dataset whose model is a file that can be used: looked up and read once, and its digest fixed, so that all volumes have the same.

    Raises:
        ModelError: It cannot.
    """
    resolved = with_model(config)
    networks = named_networks(resolved.model)  # one refusal, not one per volume
    check_alike(resolved.model, networks, rule_given=resolved.normalize is not None)
    fixed = {"digest": digest(resolved.model, networks)}
    return resolved.model_copy(update={"model": resolved.model.model_copy(update=fixed)})


def _source(config: DatasetConfig) -> str:
    if isinstance(config.volumes, str):
        return config.volumes
    return ", ".join(part if isinstance(part, str) else part.url for part in config.volumes[:3]) + (
        f" and {len(config.volumes) - 3} more" if len(config.volumes) > 3 else ""
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
