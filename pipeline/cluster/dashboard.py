"""Dask's pages of a run: served where `cluster.dashboard` asks for them, and where to look at them."""

from __future__ import annotations

from importlib.util import find_spec

from distributed import Client
from distributed.utils import format_dashboard_link

from pipeline.cluster.settings import PAGES_HOST
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError


def check_dashboard(config: ClusterConfig) -> None:
    """Find out, before any work, whether pages that are asked for can be drawn.

    Raises:
        ConfigError: They cannot.
    """
    if config.dashboard and config.kind != "address" and not find_spec("bokeh"):
        raise ConfigError(
            "cluster.dashboard is true, but bokeh, which draws Dask's pages, is not installed here. Install it (the extra "
            "`dashboard`, or `pip install 'bokeh>=3.1'`), or leave cluster.dashboard out."
        )


def dashboard_link(client: Client, config: ClusterConfig) -> str | None:
    """Where Dask's pages of the run are; None where nobody asked for them, or a scheduler of somebody else's serves none."""
    port = client.scheduler_info(n_workers=1).get("services", {}).get("dashboard")
    if not (config.dashboard and port):
        return None
    if config.kind == "address":
        theirs: str | None = client.dashboard_link
        return theirs
    ours: str = format_dashboard_link(PAGES_HOST, port)
    return ours
