"""What differs between a run and the one that wrote the checkpoint it goes on from, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint.contents import CheckpointContents
from drivetrain.checkpoint.plain import plain
from drivetrain.resume_checks import model_class, rates_of

if TYPE_CHECKING:
    from drivetrain.run import Run

INCIDENTAL = {
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "allow_resume_changes",
    "overwrite_output_dir",
    "local_rank",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "do_train",
    "do_eval",
    "do_predict",
    "report_to",
    "hub_token",
    "push_to_hub_token",
}
"""Arguments that may differ between a run and its resumption without changing what is computed."""

_OF_THE_STATE = {
    "learning_rate": "the optimizer's and the scheduler's state have theirs",
    "weight_decay": "the optimizer's state has its own",
    "adam_beta1": "the optimizer's state has its own",
    "adam_beta2": "the optimizer's state has its own",
    "adam_epsilon": "the optimizer's state has its own",
    "optim_args": "the optimizer's state has its own",
    "seed": "the random states are those of the checkpoint",
}
"""Arguments of which a checkpoint's state holds the value, which goes on; and where."""


def what_changed(run: Run, contents: CheckpointContents) -> list[str]:
    """Arguments, plugins and versions that are not those of the checkpoint, each as a clause."""
    now = plain(run.args.to_dict())
    if isinstance(now["plugins"], list):
        del now["plugins"]  # objects, which cannot be compared with what is left of them in a file
    changed = [
        f"{name} was {contents.args[name]!r} and is {now[name]!r}{_without_effect(name)}"
        for name in now
        if name in contents.args and name not in INCIDENTAL and contents.args[name] != now[name]
    ]
    plugins = {f"{kind}:{name}": version for kind, name, version, _ in run.plan.describe()}
    for key in sorted(contents.plugins.keys() & plugins.keys()):
        if contents.plugins[key] != plugins[key]:
            changed.append(f"{key} had version {contents.plugins[key]} and has {plugins[key]}")
    return [*changed, *_model(run, contents), *_length(run, contents)]


def _without_effect(name: str) -> str:
    return f" (without effect: {_OF_THE_STATE[name]})" if name in _OF_THE_STATE else ""


def _model(run: Run, contents: CheckpointContents) -> Iterator[str]:
    before: Any = contents.configuration.get("model")
    now = model_class(run.model)
    if before is not None and before != now:
        yield f"the model was a {before} and is a {now}"


def _length(run: Run, contents: CheckpointContents) -> Iterator[str]:
    """The run's length is what the schedule depends on."""
    state = contents.trainer_state
    before = state.get("max_steps") if isinstance(state, dict) else None
    if before is None or before == run.state.max_steps:
        return
    rates = rates_of(run, contents)
    moved = f", and the learning rate goes on from {rates[0]:.3g} at {rates[1]:.3g}" if rates else ""
    yield f"the run had {before} updates and has {run.state.max_steps}{moved}"
