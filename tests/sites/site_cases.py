"""What tests of a site are built of: one run, and the commands of SLURM."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.network.unet import Architecture
from tests.e2e.commands import ROOT
from tests.pipeline_cases import Run, done_entries, make_run

TILES = 16

NETWORKS = ROOT / "tests" / "sites" / "netns.sh"

PRELOAD = f"export DASK_DISTRIBUTED__WORKER__PRELOAD={ROOT / 'tests' / 'sites' / 'preload.py'}"


def site_run(folder: Path, *, cluster: Mapping[str, Any]) -> Run:
    """Sixteen tiles, in sixteens, of about a second each; all that sets their bytes is pinned."""
    return make_run(
        folder,
        architecture=Architecture(3, 2, 96),
        shape=(TILES - 3, 59, 63),
        tiles={"core": [16, 16, 16]},
        compute={"dtype": "float32", "threads": 1},
        cluster=cluster,
    )


def slurm_run(folder: Path, *, walltime: str = "01:00:00", host: str = "127.0.0.1", **effects: object) -> Run:
    """The same, by two jobs of SLURM; `effects` are variables of `preload.py`."""
    prologue = [PRELOAD, *(f"export SITE_{name.upper()}={value}" for name, value in effects.items())]
    slurm = {"walltime": walltime, "cores": 1, "prologue": prologue}
    return site_run(folder, cluster={"kind": "slurm", "workers": 2, "memory_gb": 2, "host": host, "slurm": slurm})


def done(run: Run) -> int:
    """Tiles that the ledger calls done."""
    return len(done_entries(run.directory))


@dataclass(frozen=True)
class Machines:
    """Three machines of their own network each, beside this one; what `netns.sh` makes.

    Args:
        network: The number of their network.
    """

    network: int

    @property
    def here(self) -> str:
        """The address of this machine, as they see it."""
        return f"10.77.{self.network}.1"

    def address(self, machine: int) -> str:
        """That of machine 1, 2 or 3."""
        return f"10.77.{self.network}.1{machine}"

    def inside(self, machine: int) -> list[str]:
        """What stands before a command that one of them shall run."""
        return ["bash", str(NETWORKS), "inside", str(self.network), str(machine)]

    def cut(self, machine: int) -> None:
        """Let its packets vanish, in silence."""
        self._call("cut", machine)

    def heal(self, machine: int) -> None:
        self._call("heal", machine)

    def _call(self, word: str, machine: int) -> None:
        subprocess.run(["bash", str(NETWORKS), word, str(self.network), str(machine)], check=True, timeout=60)


@dataclass(frozen=True)
class Slurm:
    """The commands of SLURM, as its users give them.

    Args:
        state: Its folder.
    """

    state: Path

    def call(self, *command: object) -> str:
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
        ).stdout

    def jobs(self, *, state: str = "", reason: str = "") -> set[str]:
        """Ids of the jobs in the queue; of those in one state, or that wait for one reason."""
        lines = self.call("squeue", "--noheader", "--format=%i %T %r").splitlines()
        found = (line.split(maxsplit=2) for line in lines)
        return {job for job, its, why in found if state in ("", its) and reason in ("", why)}

    def submit(self, *arguments: object) -> str:
        """`sbatch`; gives the id."""
        return self.call("sbatch", "--parsable", *arguments).strip()

    def ended(self, job: str) -> dict[str, str]:
        """What SLURM kept of a job, or of an array's task, that is over: `JobState`, `ExitCode`, ..."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)
