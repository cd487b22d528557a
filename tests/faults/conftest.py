"""Workers that all campaigns share."""

from tests.e2e.conftest import halotile, pooled, prefect_home, workers  # noqa: F401 - fixtures
