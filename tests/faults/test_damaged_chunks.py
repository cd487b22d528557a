"""Every codec's chunks, damaged in some hundred thousand ways."""

import pytest

from tests.faults.conftest import SECONDS
from tests.storage.test_decoding import damages


@pytest.mark.fault
@pytest.mark.parametrize("seed", ["1", "2"])
def test_no_damage_of_a_chunk_is_read_as_other_voxels(seed):
    """Cut at hundreds of places, header bytes of many values, bits of the payload: an error or the right voxels."""
    damages(seed, "every", limit=SECONDS)
