"""Which URLs are of which store; paths are tried in tests/storage/test_places.py."""

import pytest

from pipeline.core.locations import is_s3, protocol


@pytest.mark.parametrize(
    ("url", "name", "of_s3"),
    [
        ("s3://bucket/a.zarr", "s3", True),
        ("S3A://bucket/a.zarr", "s3a", True),
        ("s3n://bucket/a.zarr", "s3n", False),
        ("gs://bucket/a.zarr", "gs", False),
        ("https://s3.example.org/a.zarr", "https", False),
    ],
)
def test_a_store_is_known_by_what_stands_before_its_location(url, name, of_s3):
    """Only S3 is opened and listed as S3; `s3n` was another store, and a web server may have any name."""
    assert protocol(url) == name
    assert is_s3(url) is of_s3
