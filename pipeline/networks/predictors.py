"""Which predictor runs a plan's network: blended windows where the plan says so; several passes where it is a mean; slab by slab where it can be streamed;
else one window a tile."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.core.plan import Plan
from pipeline.networks.blending import BlendPredictor
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.mean import MeanPredictor
from pipeline.networks.predictor import TilePredictor
from pipeline.networks.slabs import StreamPredictor
from pipeline.networks.windows import WindowPredictor


def others_of(plan: Plan) -> Iterator[Checkpoint]:
    """The networks of a plan's ensemble after the first.

    Raises:
        ModelError: One is not there any more, or cannot be read.
    """
    for member in plan.model.members[1:]:
        yield load_checkpoint(member.checkpoint, padding=member.architecture.padding)


def predictor_of(checkpoint: Checkpoint, plan: Plan, earlier: TilePredictor | None = None) -> TilePredictor:
    """The predictor of a plan.

    Args:
        checkpoint: The weights that the plan names; of an ensemble, of its first network.
        plan: What to do with them.
        earlier: One that is done with, of which is taken what still serves.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
        PlanError: The numbers of its normalisation are not measured yet.
    """
    if plan.model.window:
        return BlendPredictor(checkpoint, plan, earlier=earlier if isinstance(earlier, WindowPredictor) else None)
    if plan.mean:
        mean = earlier if isinstance(earlier, MeanPredictor) else None
        return MeanPredictor([checkpoint, *others_of(plan)], plan, earlier=mean)
    if plan.model.architecture.graph.is_streamed:
        return StreamPredictor(checkpoint, plan, earlier=earlier if isinstance(earlier, StreamPredictor) else None)
    return WindowPredictor(checkpoint, plan, earlier=earlier if isinstance(earlier, WindowPredictor) else None)
