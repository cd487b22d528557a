"""Networks of libraries by the command line: every tile against the module's own pass over the whole volume, or the frozen network's."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.frozen import localised
from tests.e2e.test_run import command
from tests.networks.library_networks import COMMITTED, LOCAL, MADE, WHOLE, committed, note, run_of, stored

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


def frozen_run(folder, checkpoint, network):
    """A run by statistics of four patches, as seen by the report too."""
    patch = [ceil(n / 2) for n in network.volume.shape[1:]]
    return run_of(
        folder, checkpoint, network, statistics="frozen", frozen_from={"patches": 4, "patch": patch, "seed": 16}
    )


def one_frozen_pass(run, checkpoint, network):
    """The network, and one pass of it in float64 by the statistics that the run has measured."""
    numbers = run.directory.load_statistics().frozen.numbers
    fixed = localised(load_checkpoint(checkpoint), numbers)
    weights = {node: tuple(w.double() for w in tensors) for node, tensors in fixed.weights.items()}
    local = replace(network, graph=fixed.architecture.graph, weights=weights)
    return replace(local, expected=local.box(local.whole))


def check_frozen(folder, checkpoint, network):
    """Run it, and verify it: its difference from one pass, and the report's distances."""
    run = frozen_run(folder, checkpoint, network)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert len(run.plan.grid) >= 4
    fixed = one_frozen_pass(run, checkpoint, network)
    assert off(run, fixed) <= EQUAL
    figures = run.directory.read_json(run.directory.report_path)["frozen"]
    assert 0 < figures["frozen"] < 1
    assert 0 < figures["sliding"] < 1
    assert len(figures["parts"]) == 3
    assert "frozen or not" in (run.directory.path / "report.html").read_text()
    assert off(run, network) > 10 * EQUAL  # the control: of the network itself it is no pass
    return off(run, fixed), figures


FROZEN_SHARE = ("monai-unet-instance",)
"""For every day: it takes extents that are no whole strides, such as 11, twice which it does not take."""


@pytest.mark.parametrize("name", FROZEN_SHARE)
def test_tiles_of_a_frozen_librarys_network_are_one_pass_of_it(name, pooled, tmp_path):
    """As committed: measured, frozen, run, and reported."""
    check_frozen(tmp_path, COMMITTED / f"{name}.safetensors", committed(name))


@pytest.mark.network
@pytest.mark.parametrize("name", WHOLE)
def test_tiles_of_what_was_made_anew_and_frozen_are_one_pass_of_it(name, pooled, tmp_path):
    """From the library's program: `halotile import`, `halotile run`, and the distances of its report."""
    target = tmp_path / "network.safetensors"
    assert command("import", MADE / f"{name}.pt2", target) == 0
    found, figures = check_frozen(tmp_path, target, stored(name, target, MADE / f"{name}.npz", "large"))
    note(name, command=found, frozen=figures["frozen"], sliding=figures["sliding"])
