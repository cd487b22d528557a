"""What a training run needs to go on as if it had never stopped, in its output folder.

recipe.json      what was asked; another recipe in the same folder is refused
state.pt         weights, the optimiser's momenta, averages, steps done; replaced atomically
best.safetensors the checkpoint of the best validation so far
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.config import NormalizeConfig
from pipeline.core.strict_json import json_text
from pipeline.errors import ConfigError, StorageError
from pipeline.places.durable import make_folder, replace
from pipeline.places.locks import taken
from pipeline.training.recipe import TrainConfig

RECIPE = "recipe.json"

FORCED = "range-forced"
"""Is there where values may span as little as they like; a run that goes on is not asked again."""

FREE = ("output", "every", "readers", "data.attribution", "register_as")
"""Keys that change nothing of what is learnt: they may differ when a run goes on."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the one training run of a folder.

    Raises:
        StorageError: Another process trains there, or it cannot be written.
    """
    try:
        make_folder(folder)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise StorageError(f"Output folder '{folder}' cannot be written ({error}). Choose another `output`.") from error
    with lock:
        if not taken(lock):
            raise StorageError(f"Another process trains in '{folder}'. Wait for it, or choose another `output`.")
        yield


def refuse_other_recipe(folder: Path, config: TrainConfig) -> None:
    """Compare a recipe with the one whose run the folder holds, if any.

    Raises:
        ConfigError: The folder holds a run of another recipe.
    """
    path, content = folder / RECIPE, config.model_dump(mode="json")
    if path.is_file():
        different = _differences(_flat(json.loads(path.read_text(encoding="utf-8"))), _flat(content))
        if different:
            raise ConfigError(
                "\n".join(
                    [
                        f"Folder '{folder}' holds a training run of another recipe:",
                        *(f"  {line}" for line in different),
                        "Set these back to resume it, choose another `output`, or delete the folder to start over.",
                    ]
                )
            )


def as_begun(folder: Path, config: TrainConfig) -> TrainConfig:
    """A recipe that leaves `normalize` to the data, with what it came to when the folder's run was begun, if it was."""
    path = folder / RECIPE
    if config.normalize is not None or not path.is_file():
        return config
    normalize = json.loads(path.read_text(encoding="utf-8")).get("normalize")
    return config.model_copy(update={"normalize": normalize and NormalizeConfig(**normalize)})


def force_range(folder: Path) -> None:
    """Keep that values of any range are wanted."""
    (folder / FORCED).touch()


def is_range_forced(folder: Path) -> bool:
    """Whether that was kept."""
    return (folder / FORCED).is_file()


def keep_recipe(folder: Path, config: TrainConfig) -> None:
    """Write the recipe beside what comes of it, once its data has been found to be what it says."""
    replace(folder / RECIPE, json_text(config.model_dump(mode="json"), indent=2).encode() + b"\n")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, child in value.items() for k, v in _flat(child, f"{name}.{key}" if name else key).items()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [n for n in {**before, **now} if not any(n == free or n.startswith(f"{free}.") for free in FREE)]
    return [f"{n}: {before.get(n)} then, {now.get(n)} now" for n in names if before.get(n) != now.get(n)]


def load_state(folder: Path) -> dict[str, Any] | None:
    """What the last session left; None where there was none.

    Raises:
        StorageError: It is damaged.
    """
    path = folder / "state.pt"
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # of damaged bytes the unpickler makes whatever it happens to meet
        raise StorageError(
            f"The state of the training run in '{path}' cannot be read ({type(error).__name__}). It was damaged after it was "
            "written. Delete it to train from the start."
        ) from error
