"""What differs between a run and the one that wrote the checkpoint it goes on from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivetrain.checkpoint.contents import CheckpointContents
from drivetrain.checkpoint.plain import plain

if TYPE_CHECKING:
    from drivetrain.run import Run

INCIDENTAL = {
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
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


def what_changed(run: Run, contents: CheckpointContents) -> list[str]:
    """Arguments and plugins that are not those the checkpoint was written with, each as a clause."""
    now = plain(run.args.to_dict())
    if isinstance(now["plugins"], list):
        del now["plugins"]  # objects, which cannot be compared with what is left of them in a file
    changed = [
        f"{name} was {contents.args[name]!r} and is {now[name]!r}"
        for name in now
        if name in contents.args and name not in INCIDENTAL and contents.args[name] != now[name]
    ]
    plugins = {f"{kind}:{name}": version for kind, name, version, _ in run.plan.describe()}
    for key in sorted(contents.plugins.keys() & plugins.keys()):
        if contents.plugins[key] != plugins[key]:
            changed.append(f"{key} had version {contents.plugins[key]} and has {plugins[key]}")
    return changed
