"""What of the log reaches Prefect's server: what is about a run, and nothing about a tile."""

from __future__ import annotations

import logging

from prefect.logging.handlers import APILogHandler


def keep_tiles_from_prefect() -> None:
    """Let no line that says of which tile it is reach Prefect's server, whose database would grow with the volume.

    They are in `OUTPUT.run/run.log`. Prefect attaches its handlers to our logger when it is imported, so this comes later.
    """
    for handler in logging.getLogger("pipeline").handlers:
        if isinstance(handler, APILogHandler):
            handler.addFilter(_is_about_no_tile)  # the same again is not added


def _is_about_no_tile(record: logging.LogRecord) -> bool:
    return getattr(record, "tile", None) is None
