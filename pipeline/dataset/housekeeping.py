"""What readers need no more is removed: right after a switch, and where a volume is found done, since kills and time leave more.

By then readers see what they should. So what cannot be removed is told, and fails nothing; the next go tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pipeline.core.versions import Keep
from pipeline.errors import BusyError, PipelineError
from pipeline.places.credentials import redacted
from pipeline.publishing.publication import Publication

log = logging.getLogger("pipeline")


def clear(publication: Publication, current: str, keep: Keep) -> None:
    """Remove the old versions that may go, and the copy from which the current one was uploaded.

    Args:
        publication: Of the volume.
        current: Fingerprint of what readers see.
        keep: The rule.
    """
    with _warn(publication), publication.exclusive():
        publication.free(current)
        gone = publication.expire(keep, datetime.now(UTC), spare={current})
        if gone:
            log.info("%s: %d old version(s) removed", publication.output, len(gone))


def tidy(publication: Publication, current: str, keep: Keep) -> None:
    """The same, where a look here finds that something is to go; it takes no lock and asks no store."""
    with _warn(publication):
        if not publication.is_tidy(current, keep, datetime.now(UTC)):
            clear(publication, current, keep)


def free(publication: Publication, current: str) -> None:
    """Remove the copy alone, before another version is computed; an old one may be the one that is asked for now."""
    with _warn(publication), publication.exclusive():
        publication.free(current)


@contextmanager
def _warn(publication: Publication) -> Iterator[None]:
    try:
        yield
    except BusyError:  # who is at it does the same
        log.debug("%s is left to the one who writes there", publication.output)
    except Exception as error:  # whatever it is, it is not the volume's failure
        left = f"{publication.output}: what is not needed any more stays until the next go: {redacted(str(error))}"
        log.warning("%s", left, exc_info=not isinstance(error, PipelineError | OSError))
