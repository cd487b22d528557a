"""What became of one volume of a dataset, and the mark that it leaves beside its versions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.core.strict_json import json_text
from pipeline.errors import PipelineError
from pipeline.places import durable
from pipeline.places.credentials import redacted

State = Literal["done", "skipped", "failed", "busy", "waiting"]

MARK = "outcome.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one volume.

    Args:
        name: Of the volume.
        url: Where it lies.
        state: `done` now; `skipped`, since it was done before; `failed`; `busy`, since another process is at it; `waiting`
            for its files.
        reason: Why, in words; empty where it was done.
        fingerprint: Of the version that was asked for, where readers see it.
        seen: Fingerprint of what readers see.
        seen_url: Where that was made from.
        seen_files: Signature of the files that it was made from; empty where that is not known.
        image: Where that version lies.
        model: The network that made it.
        voxels: Of the volume.
        tiles: Computed now.
        seconds: That this took, from the plan to the switch.
        ended: When, ISO 8601, UTC.
        signature: Of the volume's files, or of its marker, where a watcher looked at them.
        attempts: Of volumes that fail: how often watchers tried, in a row, with these files.
    """

    name: str
    url: str
    state: State
    reason: str = ""
    fingerprint: str = ""
    seen: str = ""
    seen_url: str = ""
    seen_files: str = ""
    image: str = ""
    model: str = ""
    voxels: int = 0
    tiles: int = 0
    seconds: float = 0.0
    ended: str = ""
    signature: str = ""
    attempts: int = 0

    @property
    def why(self) -> str:
        """The reason in one line: the first that says something."""
        lines = [line.strip() for line in self.reason.splitlines() if line.strip()]
        if len(lines) > 1 and lines[0].endswith(":"):
            return f"{lines[0]} {lines[1]}"
        return lines[0] if lines else ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def reason_of(error: Exception) -> str:
    """Why, in words: errors raised on purpose speak for themselves, others by their kind as well."""
    return redacted(str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}")


def read_mark(folder: Path) -> Outcome | None:
    """What a volume's folder says became of it; None where nothing did yet, it cannot be read, or a newer version wrote it.

    What cannot be read is no reason to stop: whatever is done with the volume next compares it with what readers see.
    """
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return Outcome(**{field.name: mark[field.name] for field in fields(Outcome)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_mark(folder: Path, outcome: Outcome) -> Outcome:
    """Leave the mark, with the time; whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    marked = replace(outcome, ended=datetime.now(UTC).isoformat(timespec="seconds"))
    durable.make_folder(folder)
    durable.replace(folder / MARK, (json_text(marked.to_dict(), indent=2) + "\n").encode())
    return marked
