"""Networks of libraries by the command line: every tile against the module's own pass over the whole volume."""

import numpy as np
import pytest

from tests.e2e.test_run import command
from tests.networks.library_networks import COMMITTED, LOCAL, MADE, committed, note, run_of, stored

EQUAL = 1e-5
"""Of the output's range, float32."""

SHARE = ("pytorch3dunet-residual", "careamics-n2v2")
"""For every day: 3D with a halo of two sides, and 2D with padding that mirrors."""


def off(run, network) -> float:
    """The output's largest difference from the module's pass, of its range."""
    output = run.array().reshape(network.expected.shape)
    return float(np.abs(output - network.expected).max()) / network.range


@pytest.mark.parametrize("name", SHARE)
def test_tiles_of_a_librarys_network_are_its_own_pass(name, pooled, tmp_path):
    """As committed, from the checkpoint that `halotile import` wrote."""
    network = committed(name)
    run = run_of(tmp_path, COMMITTED / f"{name}.safetensors", network)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert len(run.plan.grid) >= 4
    assert off(run, network) <= EQUAL


@pytest.mark.network
@pytest.mark.parametrize("name", LOCAL)
def test_tiles_of_what_was_made_anew_are_its_own_pass(name, pooled, tmp_path):
    """From the library's program: `halotile import`, `halotile run`."""
    target = tmp_path / "network.safetensors"
    assert command("import", MADE / f"{name}.pt2", target) == 0
    network = stored(name, target, MADE / f"{name}.npz", "large")
    run = run_of(tmp_path, target, network)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert len(run.plan.grid) >= 4
    found = off(run, network)
    note(name, command=found)
    assert found <= EQUAL
