"""The command `halotile`: it reads arguments, calls a stage or the flow, and turns errors into exit status.

The module of a command is imported when the command is called, and heavy imports wait until its work begins: `--help`, of
any command, imports neither torch nor Prefect.
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any

from cyclopts import App, CycloptsPanel

from flows.commands.status import status
from flows.printing import message_of
from pipeline import __version__

COMMANDS = {
    "plan": ("run", "Dry run: print tiles, halo, amplification, memory and bytes to write; write plan.json."),
    "run": ("run", "Segment a volume: plan, survey, infer, verify, report. Run it again to resume."),
    "reprocess": (
        "dataset",
        "Segment and publish all volumes of a dataset that are not done yet. Run it again for what is left.",
    ),
    "watch": (
        "dataset",
        "Look at an inbox once: segment and publish what is new and complete. For cron, or `halotile deploy --watch`.",
    ),
    "cancel": (
        "run",
        "End a run in order, on whatever machine it is; what is finished is kept. Returns when it has ended.",
    ),
    "verify": (
        "run",
        "Compare every stored byte with the ledger and the metadata with the plan; a run mends what differs.",
    ),
    "inspect": (
        "volume",
        "Print what a store or a checkpoint is: shape, chunks, axes; stride, receptive radius, parameters, arithmetic.",
    ),
    "train": ("training", "Train a network, score it on what is held back, register it. Run it again to resume."),
    "evaluate": (
        "training",
        "Compare a prediction with labels: AUC, Dice, IoU, pixel error, V_rand, variation of information.",
    ),
    "convert": ("volume", "Write a volume as an OME-Zarr, box by box; no voxel changes."),
    "import": (
        "model",
        "Read a network of another library, and write it as a checkpoint that needs that library no more.",
    ),
    "export": ("training", "Write a bioimage.io model package that other tools run; `bioimageio test` passes it."),
    "deploy": (
        "deployment",
        "Put the flows on a Prefect server that stays: forms, named runs, schedules. Again: bring them up to date.",
    ),
    "models": ("training", "List the models of a registry, and their versions."),
    "current": (
        "dataset",
        "Print which version of an output is published: where its image is, its fingerprint, and since when.",
    ),
}
"""Each with its module and what the list of commands says of it, in the order in which a mistyped one is answered with them."""

app = App(
    name="halotile",
    version=__version__,
    help="Exact UNet inference over microscopy volumes that are larger than any machine.",
    help_epilogue="Exit status: 0 done, 1 failed, 2 refused, 3 verification failed, 130 interrupted.",
    suppress_keyboard_interrupt=False,  # `status` tells it
    error_formatter=lambda error: CycloptsPanel(message_of(error)),
)

FUNCTIONS = {"import": "import_network"}
"""Of commands whose name is a word of Python's."""

for _name, (_module, _help) in COMMANDS.items():
    app.command(f"flows.commands.{_module}:{FUNCTIONS.get(_name, _name)}", name=_name, help=_help)


def run_command() -> int:
    """Run the command and give its exit status; `halotile.main` calls it. SIGTERM ends it as Ctrl-C does: in order."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.excepthook = _print_in_full
    code = status(lambda: app(exit_on_error=False, print_error=True, result_action="return_value"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return code


def main() -> None:
    """The same, and leave with it; `flows.cli` comes here."""
    sys.exit(run_command())


def _terminate(*_: object) -> None:
    """Once: batch systems send several, and one that came while the run is put in order would leave its jobs behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _print_in_full(*error: Any) -> None:
    """A traceback, of what nobody foresaw, without what acts on a terminal."""
    print(message_of("".join(traceback.format_exception(*error))).rstrip(), file=sys.stderr)
