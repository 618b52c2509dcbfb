"""How a run stands: what a display shows, whatever it is drawn on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from drivetrain_plugins.callback.clock import Clock, Pause
from drivetrain_plugins.callback.curve import Curve
from drivetrain_plugins.callback.memory import device_memory, host_memory, size
from drivetrain_plugins.callback.rows import duration, number, speed

MEMORY_EVERY = 1.0  # seconds between two looks at the memory
MANY_EPOCHS = 1_000_000  # more are none: it is the data that have no end
MANY_STEPS = 10**12  # and here somebody has written down a number for "until I stop it"


class Figure(NamedTuple):
    """Something to show.

    Attributes:
        name: stands before the value, less bright; empty where the value says what it is.
        value: as shown.
        mood: "good", "bad", or empty.
        curve: the values before it, where they make one.
    """

    name: str
    value: str
    mood: str = ""
    curve: Curve | None = None


class Track(NamedTuple):
    """Something that advances.

    Attributes:
        name: "Training", "Evaluation", "Prediction".
        done, total: how far it is; no total where the data have no length.
        time: what is to say of the time.
        beside: what more there is to say of where it stands: the epoch, the speed.
    """

    name: str
    done: int
    total: int | None
    time: str
    beside: str


class Standing:
    """What is known of a run, told by the callback and looked at by a display.

    Attributes:
        predicted: batches of the prediction that is under way; whoever predicts adds to it.
        predicting: its name, None where there is none.
        state: the documented state of training, None outside of it.
    """

    def __init__(self) -> None:
        self.state: Any = None
        self.predicting: str | None = None
        self.predicted = 0
        self._over = False
        self._batches: int | None = None
        self._clock = Clock()
        self._prediction = Clock()
        self._losses = Curve()
        self._latest: dict[str, float] = {}
        self._evaluation: Figure | None = None
        self._best: tuple[float, int] | None = None
        self._saved: tuple[int, float | None] | None = None
        self._memory: list[Figure] = []
        self._memory_read = -math.inf
        self._optimizer: Any = None
        self._device: Any = None
        self._rows_per_step = 0
        self._metric: str | None = None
        self._greater = False

    # -- what the callback tells -----------------------------------------------------------------------

    def train(self, args: Any, state: Any, optimizer: Any, rows_per_step: int) -> None:
        """Training begins, or goes on at `state.global_step`."""
        self._optimizer, self._rows_per_step, self._device = optimizer, rows_per_step, args.device
        self._metric, self._greater = args.metric_for_best_model, bool(args.greater_is_better)
        for row in state.log_history:  # of the run that this one goes on with
            self._note_loss(row)
            self._note_metrics(row, row.get("step", 0))
        if state.global_step:
            self._saved = state.global_step, None
        epoch = state.max_steps / state.num_train_epochs if state.num_train_epochs < MANY_EPOCHS else 0.0
        pauses = {
            "evaluation": Pause(_every(args.evaluation_strategy, state.eval_steps, epoch)),
            "checkpoint": Pause(_every(args.save_strategy, state.save_steps, epoch)),
        }
        self._clock = Clock(state.global_step, pauses)
        self.state = state

    def predict(self, name: str, batches: int | None) -> None:
        """An evaluation or a prediction begins."""
        self._batches, self.predicted, self._prediction = batches, 0, Clock()
        if self.state is not None:
            self._clock.pause("evaluation", self.state.global_step)
        self.predicting = name

    def predict_no_more(self) -> None:
        """It has ended."""
        self.predicting = None
        self._clock.resume()

    def log(self, logs: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """A row of the log, with the figures that are not in it."""
        self._note_loss(logs)
        if isinstance(logs.get("learning_rate"), float):
            self._latest["learning_rate"] = logs["learning_rate"]
        if "loss" in logs:
            for name in ("grad_norm", "tokens_per_second"):
                if name in figures:
                    self._latest[name] = figures[name]

    def evaluated(self, metrics: Mapping[str, Any], step: int) -> None:
        """An evaluation's metrics."""
        self._note_metrics(metrics, step)

    def saved(self, step: int) -> None:
        """A checkpoint is whole. The time since the last step is that of the save, if it was one that waited."""
        self._saved = step, time.monotonic()
        if self.state is not None and step >= self._clock.count:
            self._clock.pause("checkpoint", step)
            self._clock.resume()

    def finish(self) -> None:
        """Nothing follows: what is shown now stays. An evaluation that an error ended is not."""
        self._over, self.predicting = True, None

    # -- what a display looks at -----------------------------------------------------------------------

    def tracks(self) -> list[Track]:
        """What advances, the training first."""
        found: list[Track] = []
        state = self.state
        if state is not None:
            self._clock.look(state.global_step)
            done, total = self._clock.count, state.max_steps if state.max_steps < MANY_STEPS else None
            found.append(Track("Training", done, total, _time(self._clock, total, self._over), self._epoch()))
        if self.predicting is not None:
            self._prediction.look(self.predicted)
            rate = self._prediction.rate
            found.append(
                Track(
                    self.predicting,
                    self.predicted,
                    self._batches,
                    _time(self._prediction, self._batches, False),
                    f"{speed(rate)} batches/s" if rate else "",
                )
            )
        return found

    def figures(self) -> list[list[Figure]]:
        """What else there is, in groups: what is learned, how fast, what has been reached."""
        if self.state is None:
            return []
        learned: list[Figure] = []
        latest = self._latest
        if "loss" in latest:
            bad = "" if math.isfinite(latest["loss"]) else "bad"
            learned.append(Figure("loss", number(latest["loss"]), bad, self._losses))
        rate = _learning_rate(self._optimizer)
        rate = latest.get("learning_rate") if rate is None else rate
        if rate is not None:
            learned.append(Figure("lr", f"{rate:.2e}"))
        if "grad_norm" in latest:
            bad = "" if math.isfinite(latest["grad_norm"]) else "bad"
            learned.append(Figure("grad norm", number(latest["grad_norm"]), bad))
        fast: list[Figure] = []
        steps = self._clock.rate
        if steps:
            fast.append(Figure("", f"{speed(steps * self._rows_per_step)} rows/s"))
        if "tokens_per_second" in latest:
            fast.append(Figure("", f"{speed(latest['tokens_per_second'])} tokens/s"))
        fast += self._memory_figures()
        reached: list[Figure] = []
        if self._saved is not None:
            step, when = self._saved
            age = "" if when is None or self._over else f", {duration(time.monotonic() - when)} ago"
            reached.append(Figure("checkpoint", f"{step:,}{age}"))
        if self._evaluation is not None:
            reached.append(self._evaluation)
        return [group for group in (learned, fast, reached) if group]

    # --------------------------------------------------------------------------------------------------

    def _epoch(self) -> str:
        state = self.state
        if not isinstance(state.epoch, (int, float)):
            return ""
        total = f"/{state.num_train_epochs}" if state.num_train_epochs < MANY_EPOCHS else ""
        return f"epoch {state.epoch:.2f}{total}"

    def _note_loss(self, row: Mapping[str, Any]) -> None:
        loss = row.get("loss")
        if isinstance(loss, (int, float)):
            self._latest["loss"] = float(loss)
            self._losses.add(float(loss))

    def _note_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        name = self._metric_of(metrics)
        if name is None:
            return
        value = float(metrics[name])
        best = self._best
        is_best = not math.isnan(value) and (
            best is None or (value > best[0] if self._greater else value < best[0])
        )
        if is_best:
            self._best = best = value, step
        shown = number(value)
        if is_best:
            shown += " (best)"
        elif best is not None:
            shown += f" (best {number(best[0])} at {best[1]:,})"
        bad = "bad" if not math.isfinite(value) else ""
        self._evaluation = Figure(name, shown, "good" if is_best else bad)

    def _metric_of(self, metrics: Mapping[str, Any]) -> str | None:
        """The metric that decides which model is the best; the loss where none does."""
        wanted = self._metric or "loss"
        if wanted not in metrics and not wanted.startswith("eval_"):
            wanted = f"eval_{wanted}"
        if wanted not in metrics:
            wanted = next((n for n in metrics if n.startswith("eval_") and n.endswith("_loss")), wanted)
        return wanted if wanted != "loss" and isinstance(metrics.get(wanted), (int, float)) else None

    def _memory_figures(self) -> list[Figure]:
        now = time.monotonic()
        if now - self._memory_read >= MEMORY_EVERY:
            self._memory_read = now
            self._memory = []
            host = host_memory()
            if host is not None:
                self._memory.append(Figure("host", size(host)))
            device = device_memory(self._device)
            if device is not None:
                held, total = device
                of = "" if total is None else f" of {size(total)}"
                self._memory.append(Figure(self._device.type, f"{size(held)}{of}"))
        return self._memory


def _every(strategy: Any, steps: float | None, epoch: float) -> float:
    """Steps from one evaluation, or checkpoint, to the next; 0 where there is none."""
    name = str(getattr(strategy, "value", strategy))
    return {"steps": float(steps or 0), "epoch": epoch}.get(name, 0.0)


def _time(clock: Clock, total: int | None, over: bool) -> str:
    if over:
        return f"{duration(clock.elapsed)} in all"
    if clock.rate is None:
        return f"{duration(clock.elapsed)} so far" if clock.elapsed >= 1 else ""
    left = None if total is None else clock.left(total)
    if left is None or total is None:
        return f"{duration(clock.elapsed)} so far"
    return f"{'~' if clock.is_rough(total) else ''}{duration(left)} left"


def _learning_rate(optimizer: Any) -> float | None:
    """The rate of the first group, where reading it makes no device wait."""
    try:
        rate = optimizer.param_groups[0]["lr"]
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
    return float(rate) if isinstance(rate, (int, float)) else None
