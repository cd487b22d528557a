"""What a small volume of a dataset costs besides its tile: 200 volumes of 64 x 64 x 64.

    python -m tests.benchmarks.dataset [--volumes 200] [--no-prefect]

A volume's time is that between the first volume's end and the last one's, by the number of the others. It is compared with the
time of the tile itself, alone on the machine with as many threads as the workers have together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from pipeline import stages
from pipeline.config import RunConfig, validated
from pipeline.core.ledger import TileRecord
from pipeline.outputs.rundir import RunDirectory
from tests.e2e.commands import ROOT, Command
from tests.pipeline_cases import random_volume, save_array

EXTENT = 64


def measured(folder: Path, volumes: int, *, prefect: bool) -> dict[str, float]:
    """Seconds a volume, and seconds of its tile alone."""
    for number in range(volumes):
        save_array(folder / "volumes" / f"v{number:03}.zarr", random_volume((EXTENT,) * 3, seed=number), (32, 64, 64))
    content = {
        "volumes": str(folder / "volumes"),
        "output": {"url": str(folder / "output"), "dtype": "uint8", "activation": "sigmoid"},
        "model": {"checkpoint": str(ROOT / "configs" / "demo" / "em-membranes-3d.safetensors")},
    }
    (folder / "dataset.yaml").write_text(json.dumps(content))
    arguments = ["reprocess", folder / "dataset.yaml", *(() if prefect else ("--no-prefect",))]
    command = Command(arguments, folder / "prefect")
    if command.wait(3600):
        sys.exit(command.error)
    tile = _tile_alone(folder, content)
    return {"volumes": volumes, "seconds_a_volume": _seconds_a_volume(folder / "output"), "tile_seconds": tile}


def _seconds_a_volume(output: Path) -> float:
    """From the switches, which are to the microsecond."""
    records = [json.loads(path.read_text()) for path in output.glob("*/versions/*/published.json")]
    times = sorted(datetime.fromisoformat(record["published"]) for record in records)
    return (times[-1] - times[0]).total_seconds() / (len(times) - 1)


def _tile_alone(folder: Path, content: dict) -> float:
    """The last of three runs of one volume, each a tile, with all cores."""
    found = []
    for attempt in range(3):
        run = {
            "input": {"url": str(folder / "volumes" / "v000.zarr")},
            "output": {**content["output"], "url": str(folder / f"alone-{attempt}.zarr")},
            "model": content["model"],
        }
        config = validated(RunConfig, run, source="alone")
        stages.plan(stages.Run(config))
        stages.infer(stages.Run(config))
        found += [r.seconds for r in RunDirectory(config.output.url).records() if isinstance(r, TileRecord)]
    return min(found)


def main() -> None:
    """Print the two figures and the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--no-prefect", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), given.volumes, prefect=not given.no_prefect)
    bound = 1.5 * found["tile_seconds"] + 0.3
    print(f"{found['volumes']} volumes: {found['seconds_a_volume']:.3f} s each beyond the first")
    print(f"the tile alone: {found['tile_seconds']:.3f} s; 1.5 times that and 0.3 s: {bound:.3f} s")


if __name__ == "__main__":
    main()
