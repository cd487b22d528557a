"""Errors into words and an exit status: 0 done, 1 failed, 2 refused (usage errors too), 3 verification failed, 130 interrupted.

141, where nobody read what a command printed, is seen to by `halotile.py`.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from cyclopts import CycloptsError

from flows.printing import message_of
from pipeline.errors import REFUSALS, ConfigError, PipelineError, VerificationError

DONE, FAILED, REFUSED, UNVERIFIED, INTERRUPTED = 0, 1, 2, 3, 130

EXTRAS = dict.fromkeys(("edt", "lightning_fabric", "scipy", "skimage", "tensorboard", "threadpoolctl"), "train") | {
    "dask_jobqueue": "slurm",
    "dask_kubernetes": "kubernetes",
    "kr8s": "kubernetes",
}
"""Packages that are not installed with Halotile itself, and which extra brings them."""


def status(command: Callable[[], int | None]) -> int:
    """The exit status of a command; errors raised on purpose are told without a traceback."""
    try:
        return command() or DONE
    except CycloptsError:
        return REFUSED
    except VerificationError as error:
        return _print_error("verification failed", error, UNVERIFIED)
    except REFUSALS as error:
        return _print_error("refused", error, REFUSED)
    except PipelineError as error:
        return _print_error("failed", error, FAILED)
    except OSError as error:  # of a file that no room knew what to do about
        from pipeline.places.durable import file_error  # noqa: PLC0415 - seldom

        early = error.errno == errno.ENAMETOOLONG  # of a name that was given, before anything was done with it
        return _print_error(
            *(("refused", file_error(None, error), REFUSED) if early else ("failed", file_error(None, error), FAILED))
        )
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            return _surroundings(error)
        from pipeline.installation import how_to_install  # noqa: PLC0415 - seldom

        lacking = ConfigError(
            f"This needs the package {error.name}, which is not installed here. To have it, {how_to_install(EXTRAS[error.name])}"
        )
        return _print_error("refused", lacking, REFUSED)
    except Exception as error:  # noqa: BLE001 - told where the cause is known, raised where it is not
        return _surroundings(error)
    except KeyboardInterrupt:
        print("halotile: interrupted; what is finished is kept, run again to resume", file=sys.stderr)
        return INTERRUPTED


def _surroundings(error: Exception) -> int:
    from flows.commands.surroundings import explain  # noqa: PLC0415 - seldom needed

    cause = explain(error)
    if cause is None:
        raise error
    return _print_error("refused", cause, REFUSED)


def _print_error(word: str, error: PipelineError, code: int) -> int:
    print(message_of(f"halotile: {word}: {error}"), file=sys.stderr)
    return code
