"""Options of the loggers, each beside what its environment says. None of it imports a tracker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoggerOptions:
    """What every logger has.

    Attributes:
        queue_size: rows of the log that may wait to be written; after that the oldest is dropped, and counted.
        open_timeout: seconds that the run's begin waits for the tracker to be open.
        close_timeout: seconds that the run's end waits for the tracker, if it has kept up; and that the process
            waits at its own end, if it has not.
    """

    queue_size: int = 1000
    open_timeout: float = 0.0
    close_timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.queue_size < 1:
            raise ValueError(f"queue_size={self.queue_size} must be at least 1")
        if self.open_timeout < 0 or self.close_timeout < 0:
            raise ValueError("open_timeout and close_timeout must not be negative")


@dataclass(frozen=True)
class FileOptions(LoggerOptions):
    """Of the loggers `csv` and `jsonl`.

    Attributes:
        queue_size: as for every logger.
        open_timeout: as for every logger.
        close_timeout: as for every logger.
        path: of the file, from output_dir on; by default log.csv or log.jsonl, in the trial's folder within a search.
    """

    path: str | None = None


@dataclass(frozen=True)
class SharedOptions(LoggerOptions):
    """Of loggers whose run the whole process shares: a script's callbacks log to it too, so the begin waits a little.

    Attributes:
        queue_size: as for every logger.
        open_timeout: as for every logger.
        close_timeout: as for every logger.
    """

    open_timeout: float = 10.0


@dataclass(frozen=True)
class CodecarbonOptions(LoggerOptions):
    """Of `codecarbon`.

    Attributes:
        queue_size: as for every logger.
        open_timeout: as for every logger.
        close_timeout: as for every logger.
        country: where the machine is, in three letters (FRA); CodeCarbon then asks no server for it.
    """

    country: str | None = None


@dataclass(frozen=True)
class NeptuneOptions(LoggerOptions):
    """Of `neptune`.

    Attributes:
        queue_size: as for every logger.
        open_timeout: as for every logger.
        close_timeout: as for every logger.
        base_namespace: what everything of a run lies below.
        log_parameters: whether arguments and model configuration are written.
        log_checkpoints: "same" uploads every checkpoint, "last" keeps the last one alone.
    """

    base_namespace: str = "finetuning"
    log_parameters: bool = True
    log_checkpoints: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_checkpoints not in (None, "same", "last"):
            raise ValueError(f"log_checkpoints={self.log_checkpoints!r} must be 'same' or 'last'")


@dataclass(frozen=True)
class FlyteOptions(LoggerOptions):
    """Of `flyte`, which works in the main thread.

    Attributes:
        queue_size: not for this logger, which has no queue.
        open_timeout: not for this logger, which the run waits for.
        close_timeout: not for this logger, which the run waits for.
        save_log_history: whether the log is shown as a deck.
        sync_checkpoints: whether Flyte keeps the checkpoints.
    """

    save_log_history: bool = True
    sync_checkpoints: bool = True

    def __post_init__(self) -> None:
        usual = LoggerOptions()
        for name in ("queue_size", "open_timeout", "close_timeout"):
            if getattr(self, name) != getattr(usual, name):
                raise ValueError(
                    f"{name} has no effect here, since it works in the main thread: leave it out"
                )
