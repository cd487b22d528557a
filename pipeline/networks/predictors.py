"""Which predictor runs a plan's network: the sweep where it has a step for each of its operations, else one window a tile; several passes where it is a mean."""

from __future__ import annotations

from pipeline.core.plan import Plan
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.mean import MeanPredictor
from pipeline.networks.predictor import UNetPredictor
from pipeline.networks.windows import WindowPredictor

AnyPredictor = UNetPredictor | WindowPredictor | MeanPredictor


def predictor_of(checkpoint: Checkpoint, plan: Plan, earlier: AnyPredictor | None = None) -> AnyPredictor:
    """The predictor of a plan.

    Args:
        checkpoint: The weights that the plan names.
        plan: What to do with them.
        earlier: One that is done with, of which is taken what still serves.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
        PlanError: The numbers of its normalisation are not measured yet.
    """
    if plan.mean:
        return MeanPredictor(checkpoint, plan, earlier=earlier if isinstance(earlier, MeanPredictor) else None)
    if plan.model.architecture.graph.is_swept:
        return UNetPredictor(checkpoint, plan, earlier=earlier if isinstance(earlier, UNetPredictor) else None)
    return WindowPredictor(checkpoint, plan, earlier=earlier if isinstance(earlier, WindowPredictor) else None)
