"""Workers that all campaigns share, and the time that a campaign may take."""

import pytest

from tests.e2e.conftest import halotile, pooled, prefect_home, workers  # noqa: F401 - fixtures

SECONDS = 7200
"""What a campaign may take: that of a single test is not enough on a busy machine."""


def pytest_collection_modifyitems(items):
    """Give each its time, unless it says another."""
    for item in items:
        if item.get_closest_marker("fault") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))
