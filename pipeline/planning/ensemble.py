"""The networks of a run: one, or those of an ensemble, which must be of one kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from pipeline.config import ModelConfig, RunConfig
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.outputs.rundir import RunDirectory
from pipeline.planning.network import named_network, open_network


def networks_of(config: RunConfig, earlier: Plan | None = None) -> tuple[Checkpoint, ...]:
    """The networks of a run, in order; what the run of an earlier plan keeps of an import serves again.

    Raises:
        ModelError, ConfigError: A file is none that can be used.
    """
    asked = alone(config.model)
    if earlier is None or len(earlier.model.alone) != len(asked):
        return named_networks(config.model)
    directory = RunDirectory(config.output.url)
    return tuple(
        open_network(one, model, directory.kept_path(number))
        for number, (one, model) in enumerate(zip(asked, earlier.model.alone, strict=True))
    )


def named_networks(model: ModelConfig) -> tuple[Checkpoint, ...]:
    """Those that a model's keys name.

    Raises:
        ModelError, ConfigError: A file is none that can be used.
    """
    return tuple(map(named_network, alone(model)))


def alone(model: ModelConfig) -> tuple[ModelConfig, ...]:
    """Of each network that a model names, a model that names it alone."""
    if not model.ensemble:
        return (model,)
    keys = ("checkpoint", "padding", "architecture", "trust", "output")
    return tuple(ModelConfig(**{key: getattr(member, key) for key in keys}) for member in model.ensemble)


def digest(model: ModelConfig, networks: Sequence[Checkpoint]) -> str:
    """Of all that decides what a run of them computes."""
    if not model.ensemble:
        return networks[0].digest
    members = [(one.digest, member.weight) for one, member in zip(networks, model.ensemble, strict=True)]
    return hashlib.sha256(str(members).encode()).hexdigest()


COMPARED: tuple[tuple[str, Callable[[Checkpoint], object]], ...] = (
    ("spatial axes", lambda one: one.architecture.ndim),
    ("input channels", lambda one: one.architecture.in_channels),
    ("output channels", lambda one: one.architecture.out_channels),
)
"""What the networks of an ensemble have in common."""


def check_alike(model: ModelConfig, networks: Sequence[Checkpoint], *, rule_given: bool) -> None:
    """Refuse an ensemble whose networks predict other things, or of other values.

    Args:
        model: What was asked for.
        networks: Its networks.
        rule_given: Whether the run says how values become their input, whatever they were trained with.

    Raises:
        ModelError: They do.
    """
    problems = [*_differences(model, networks, rule_given=rule_given)]
    if problems:
        raise ModelError(
            "\n".join(["The networks of model.ensemble have no common mean:", *(f"  {p}" for p in problems)])
        )


def _differences(model: ModelConfig, networks: Sequence[Checkpoint], *, rule_given: bool) -> Iterator[str]:
    names = [one.checkpoint for one in alone(model)]
    for name, network in zip(names[1:], networks[1:], strict=True):
        for what, value in COMPARED:
            if value(network) != value(networks[0]):
                yield f"'{names[0]}' has {value(networks[0])} {what}, and '{name}' has {value(network)}. Take networks that have the same."
        one, other = (found.normalization for found in (networks[0], network))
        if not rule_given and not (one or Normalization()).same_rule(other or Normalization()):
            yield (
                f"'{names[0]}' was trained with the normalisation {_rule(one)}, and '{name}' with {_rule(other)}: the volume is read once, "
                "by one rule. Take networks that have the same, or set normalize, for all."
            )


def _rule(rule: Normalization | None) -> str:
    return f"'{rule.mode}'" if rule else "'none' (its file says nothing)"
