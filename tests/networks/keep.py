"""Commit networks that were made anew: `python -m tests.networks.keep`, after `python -m tests.networks.make build/networks`."""

from __future__ import annotations

import json

import numpy as np

from pipeline.networks.checkpoint import save_checkpoint
from pipeline.networks.importing.network import import_network
from tests.networks.library_networks import CASES, COMMITTED, MADE, manifest


def main() -> None:
    """Import all that is there, and keep it beside the pass over the small volume; what was not made anew stays."""
    COMMITTED.mkdir(exist_ok=True)
    said = manifest(MADE)
    for name in said:
        save_checkpoint(COMMITTED / f"{name}.safetensors", import_network(MADE / f"{name}.pt2"))
        with np.load(MADE / f"{name}.npz") as arrays:
            kept = {key: arrays[key] for key in ("small", "small_pass")}
            np.savez_compressed(COMMITTED / f"{name}.npz", **kept)
    known = {**(manifest() if (COMMITTED / "manifest.json").exists() else {}), **said}
    ordered = {name: known[name] for name in CASES if name in known}
    (COMMITTED / "manifest.json").write_text(json.dumps(ordered, indent=1) + "\n")
    size = sum(path.stat().st_size for path in COMMITTED.iterdir())
    print(f"{len(said)} networks, {size / 1e6:.1f} MB in {COMMITTED}")


if __name__ == "__main__":
    main()
