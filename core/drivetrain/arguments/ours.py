"""What drivetrain adds; keyword-only, after the documented arguments."""

from dataclasses import dataclass

from drivetrain.arguments.checks import a_dict, a_list, plugin_options, size
from drivetrain.arguments.enums import LossReduction, OnNanLoss, OnSaveError
from drivetrain.arguments.field import DictOrJson, ListOrJson, PluginsOrJson, argument


@dataclass(kw_only=True)
class Ours:
    """The arguments about what drivetrain adds."""

    strategy: str = argument(
        "auto",
        "The strategy, by the name of an installed one; auto follows the documented arguments, then the"
        " number of"
        " processes.",
    )
    precision: str = argument(
        "auto", "The precision, by the name of an installed one; auto follows bf16 and fp16."
    )
    plugins: PluginsOrJson = argument(
        None,
        "Options by plugin name, or in Python a list of plugins.",
        check=plugin_options,
        accepts="a dict of options by plugin name, or a list of plugins",
    )
    lr_scheduler_kwargs: DictOrJson = argument(
        None, "Options of the scheduler.", owner="scheduler", check=a_dict, accepts="a dict"
    )
    param_groups: ListOrJson = argument(
        None,
        "Learning rate, weight decay and more by pattern over parameter names.",
        owner="optimizer",
        check=a_list,
        accepts="a list of dicts",
    )
    loss_reduction: LossReduction | str = argument(
        "micro_batches",
        "An update's loss is the mean of its micro-batches' means, or with tokens the mean over all of"
        " its tokens, over"
        " accumulation and ranks.",
    )
    fsdp_version: int = argument(
        2, "Which FSDP: 1 wraps modules, 2 shards each parameter.", owner="strategy:fsdp", choices=(1, 2)
    )
    allow_resume_changes: bool = argument(
        False, "Resume although what has changed since the checkpoint would corrupt the run."
    )
    save_async: bool = argument(False, "Write checkpoints while training goes on.")
    on_save_error: OnSaveError | str = argument("stop", "Whether a failed save ends the run or is a warning.")
    max_shard_size: str = argument("5GB", "Weights are split into files no larger than this.", check=size)
    save_on_exception: bool = argument(
        False,
        "Write a checkpoint of the last update when an error ends training, where the error has left it whole.",
    )
    on_nan_loss: OnNanLoss | str = argument(
        "ignore",
        "When a loss or the norm of the gradients is NaN or infinite: warn, stop the run, or skip the update.",
        owner="callback:nan_watch, callback:nan_skip",
    )
    keep_effective_batch_size: bool = argument(
        False,
        "Where auto_find_batch_size finds a smaller batch, an update keeps its rows: each batch is run in parts.",
    )
    batch_eval_metrics: bool = argument(
        False,
        "Feed compute_metrics batch by batch, with compute_result=True at the last, and keep no predictions.",
    )
    record: bool = argument(
        True, "Write a record of the run into output_dir, for drivetrain report.", owner="callback:record"
    )
    requeue: bool = argument(
        False, "When SIGUSR1 has ended training with a checkpoint, put the SLURM job into its queue again."
    )
    hub_patience: float = argument(
        600.0,
        "Seconds without an upload coming to its end, beside those its files take at 1 MB/s, after which the end of a"
        " run waits for the hub no longer.",
        owner="hub",
        least=0,
    )
