"""`cluster.kind: cuda`: one process per card of this machine, or of those in CUDA_VISIBLE_DEVICES. `local`, but a card is a must."""

from __future__ import annotations

from dataclasses import replace

from pipeline.cluster import local
from pipeline.config import ClusterConfig
from pipeline.core.machine import Machine
from pipeline.networks.device import check_device, visible_cards

start = local.start


def machine(config: ClusterConfig) -> Machine:
    """This machine, and as many workers as it has cards.

    Raises:
        ModelError: It has none.
    """
    check_device("cuda")
    return replace(local.machine(config), workers=len(visible_cards()), device="cuda")
