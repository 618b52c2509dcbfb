"""Callbacks that come with drivetrain: what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight


def _bar_wanted(args: Any) -> Claim | None:
    return None if args.disable_tqdm else Claim("disable_tqdm=False", Weight.DEFAULT)


def _watches(word: str) -> Callable[[Any], Claim | None]:
    """Chosen by a word of `debug`."""
    return lambda args: Claim(f"debug={word!r}") if word in args.debug else None


def _memory_wanted(args: Any) -> Claim | None:
    return None if args.skip_memory_metrics else Claim("skip_memory_metrics=False")


def _tokens_wanted(args: Any) -> Claim | None:
    return Claim("include_tokens_per_second=True") if args.include_tokens_per_second else None


def _nan_watched(args: Any) -> Claim | None:
    wanted = args.on_nan_loss
    return Claim(f"on_nan_loss={str(wanted)!r}") if wanted in ("warn", "stop") else None


def _nan_skipped(args: Any) -> Claim | None:
    return Claim("on_nan_loss='skip'") if args.on_nan_loss == "skip" else None


def _record_wanted(args: Any) -> Claim | None:
    return Claim("record=True", Weight.DEFAULT) if args.record else None


def _bar_unwanted(args: Any) -> Claim | None:
    return Claim("disable_tqdm=True", Weight.DEFAULT) if args.disable_tqdm else None


PROGRESS = PluginInfo(
    name="progress",
    kind="callback",
    summary="A display of the run on a terminal or in a notebook; plain lines elsewhere.",
    implementation="drivetrain_plugins.callback.progress:ProgressCallback",
    arguments=("disable_tqdm",),
    chosen_by=_bar_wanted,
)

PRINTER = PluginInfo(
    name="printer",
    kind="callback",
    summary="Prints each row of the log as it is.",
    implementation="drivetrain_plugins.callback.printer:PrinterCallback",
    arguments=("disable_tqdm",),
    chosen_by=_bar_unwanted,
)

RECORD = PluginInfo(
    name="record",
    kind="callback",
    summary="Writes a record of the run into its folder, from which `drivetrain report` makes a page.",
    implementation="drivetrain_plugins.callback.record:Record",
    arguments=("record",),
    chosen_by=_record_wanted,
)

GRADIENT_NORMS = PluginInfo(
    name="gradient_norms",
    kind="callback",
    summary="Norms of the gradients, in all and by parameter group or parameter, every so many updates.",
    implementation="drivetrain_plugins.callback.gradient_norms:GradientNorms",
    options="drivetrain_plugins.callback.gradient_norms:GradientNormsOptions",
)

NAN_WATCH = PluginInfo(
    name="nan_watch",
    kind="callback",
    summary="Says a NaN or infinite loss, or ends the run by it.",
    implementation="drivetrain_plugins.callback.nan_watch:NanWatch",
    arguments=("on_nan_loss",),
    chosen_by=_nan_watched,
)

NAN_SKIP = PluginInfo(
    name="nan_skip",
    kind="callback",
    summary="Leaves out an update whose loss or gradients are NaN or infinite.",
    implementation="drivetrain_plugins.callback.nan_skip:NanSkip",
    options="drivetrain_plugins.callback.nan_skip:NanSkipOptions",
    arguments=("on_nan_loss",),
    chosen_by=_nan_skipped,
)

UNDERFLOW_OVERFLOW = PluginInfo(
    name="underflow_overflow",
    kind="callback",
    summary="Traces NaN and infinity to the module, the weight or the update where they began.",
    implementation="drivetrain_plugins.callback.underflow_overflow:UnderflowOverflow",
    options="drivetrain_plugins.callback.underflow_overflow:UnderflowOverflowOptions",
    arguments=("debug",),
    chosen_by=_watches("underflow_overflow"),
    conflicts={
        "transform:torch_compile": "what is compiled has no modules to look into; leave torch_compile out meanwhile."
    },
)

TPU_METRICS = PluginInfo(
    name="tpu_metrics",
    kind="callback",
    summary="Prints torch_xla's counters after each epoch and each evaluation.",
    implementation="drivetrain_plugins.callback.tpu_metrics:TpuMetrics",
    arguments=("debug", "tpu_metrics_debug"),
    requires=("torch_xla>=2.9",),
    extra="xla",
    chosen_by=_watches("tpu_metrics_debug"),
)

MEMORY_METRICS = PluginInfo(
    name="memory_metrics",
    kind="callback",
    summary="Memory of the host and of the device in the metrics, by stage.",
    implementation="drivetrain_plugins.callback.memory_metrics:MemoryMetrics",
    arguments=("skip_memory_metrics",),
    requires=("psutil>=5.9; sys_platform != 'linux'",),  # Linux tells it in /proc
    extra="memory_metrics",
    chosen_by=_memory_wanted,
)

TOKENS_PER_SECOND = PluginInfo(
    name="tokens_per_second",
    kind="callback",
    summary="Tokens a second and device in the metrics of training.",
    implementation="drivetrain_plugins.callback.tokens_per_second:TokensPerSecond",
    arguments=("include_tokens_per_second",),
    chosen_by=_tokens_wanted,
)

FLOPS = PluginInfo(
    name="flops",
    kind="callback",
    summary="Floating-point operations of an update, counted by torch, and how many are done a second.",
    implementation="drivetrain_plugins.callback.flops:Flops",
    options="drivetrain_plugins.callback.flops:FlopsOptions",
)

PROFILER = PluginInfo(
    name="profiler",
    kind="callback",
    summary="torch.profiler over some updates: a trace for the browser, and the dearest operators.",
    implementation="drivetrain_plugins.callback.profiler:Profiler",
    options="drivetrain_plugins.callback.profiler:ProfilerOptions",
)
