"""What one rank has for a checkpoint beside the strategy's state, and how the parts of all ranks become one.

A part is taken without asking another rank: so it can be noted after each update, and brought together later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint import RandomState
from drivetrain.data.position import together
from drivetrain.gathering import broadcast, gather_objects, to_host
from drivetrain.listener_states import callback_states, plugin_states

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer


@dataclass
class RankPart:
    """The part of one rank.

    Attributes:
        position: where the run is; its `data` as `EpochIterator.position_here` gives it.
        loss: as `LossWindow.state` gives it; the sum is on the device.
        plugin_states, callback_states: by their names.
        random: the generators' states.
    """

    position: dict[str, Any]
    loss: dict[str, Any]
    plugin_states: dict[str, Any]
    callback_states: dict[str, Any]
    random: RandomState


def rank_part(trainer: Trainer, run: Run) -> RankPart:
    """The part of this rank now. Tensors are those in use, not copies."""
    position, layout = trainer._position, trainer._layout
    return RankPart(
        position={
            "epoch": position.epoch,
            "batch": position.batch,
            "micro_batches": position.micro_batches,
            "epoch_ended": position.epoch_ended,
            "data": trainer._batches.position_here() if trainer._batches is not None else None,
            "epoch_stop": run.control.should_epoch_stop,
            # With the batch size that was asked for, where `auto_find_batch_size` may have found another.
            "layout": None
            if layout is None
            else {**layout.to_json(), "asked": trainer.args.train_batch_size},
        },
        loss=trainer._losses.state(),
        plugin_states=plugin_states(run),
        callback_states=callback_states(trainer),
        random=RandomState.capture(),  # last: whoever gave a state may have drawn
    )


def bring_together(part: RankPart, run: Run) -> dict[str, Any]:
    """What a checkpoint holds of the parts of all ranks, by the names of `CheckpointContents`. A collective."""
    first, *others = gather_objects(part.random, run.processes)
    here = part.position["data"]
    listeners = {"plugin_states": part.plugin_states, "callback_states": part.callback_states}
    if len(run.writers) > 1:  # rank 0's on every node: its loggers alone may know where they log to
        listeners = broadcast(to_host(listeners) if run.is_main_process else None, run.processes)
    return {
        "random": first,
        "others": others,
        "position": {**part.position, "data": together(here, run.processes) if here is not None else None},
        "loss": {**part.loss, "sum": run.strategy.collect(part.loss["sum"]).cpu()},
        **listeners,
    }
