"""What scripts print and write after a run: metrics, their files, counts of rows and tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from drivetrain.base import TrainerBase

logger = logging.getLogger("drivetrain")


class Reports(TrainerBase):
    """The part of the Trainer that writes and prints metrics."""

    def metrics_format(self, metrics: dict[str, float]) -> dict[str, Any]:
        """A copy of the metrics for people: runtimes as h:mm:ss, floating-point operations in GF, 4 decimals."""
        shown: dict[str, Any] = {}
        for key, value in metrics.items():
            if "_mem_" in key:
                shown[key] = f"{int(value) >> 20}MB"
            elif "_runtime" in key:
                seconds = float(value)
                shown[key] = f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02d}:{seconds % 60:05.2f}"
            elif key == "total_flos":
                shown[key] = f"{int(value) >> 30}GF"
            elif isinstance(value, float):
                shown[key] = round(value, 4)
            else:
                shown[key] = value
        return shown

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Prints metrics as a table, on the main process.

        Args:
            split: "train", "eval" or "test": the table's title.
            metrics: the metrics.
        """
        if not self.is_world_process_zero():
            return
        shown = self.metrics_format(metrics)
        print(f"***** {split} metrics *****")
        width = max((len(str(key)) for key in shown), default=0)
        value_width = max((len(str(value)) for value in shown.values()), default=0)
        for key in sorted(shown):
            print(f"  {key: <{width}} = {shown[key]!s:>{value_width}}")

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Writes `<split>_results.json` in the output folder, on the main process.

        Args:
            split: "train", "eval", "test", or "all".
            metrics: the metrics.
            combined: also merge them into `all_results.json`.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{split}_results.json", metrics)
        if combined:
            path = folder / "all_results.json"
            merged = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            merged.update(metrics)
            _write(path, merged)

    def save_state(self) -> None:
        """Writes `trainer_state.json` in the output folder, on the main process."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def num_examples(self, dataloader: Any) -> int:
        """Rows of a dataloader's data set; batches times batch size where it has no length."""
        try:
            return len(dataloader.dataset)
        except (NameError, AttributeError, TypeError):
            return int(len(dataloader) * self.args.per_device_train_batch_size)

    def num_tokens(self, train_dl: Any, max_steps: int | None = None) -> int:
        """Tokens (`input_ids`) of an epoch, or those of the first batch times `max_steps`; reads the data."""
        total = 0
        for batch in train_dl:
            tokens = int(batch["input_ids"].numel())
            if max_steps is not None:
                return tokens * max_steps
            total += tokens
        return total

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]) -> float:
        """Floating-point operations of a batch, forward and backward, as the model tells them.

        A model of later transformers, which does not tell, has six for each token and parameter, without the
        embeddings (https://arxiv.org/abs/2001.08361, section 2.1). Any other: 0.
        """
        model = self.model
        counter = getattr(model, "floating_point_ops", None)
        if counter is not None:
            return float(counter(inputs))
        tokens = inputs.get(getattr(model, "main_input_name", "input_ids"))
        if tokens is None or not hasattr(model, "num_parameters"):
            return 0.0
        if self._counted is None or self._counted[0] is not model:  # counting walks over the whole model
            self._counted = model, int(model.num_parameters(exclude_embeddings=True))
        return 6.0 * tokens.numel() * self._counted[1]

    _counted: tuple[Any, int] | None = None

    def _counts_flos(self) -> bool:
        """Whether there is anything to count: the model tells, or a subclass does."""
        overridden = type(self).floating_point_ops is not Reports.floating_point_ops
        return (
            overridden or hasattr(self.model, "floating_point_ops") or hasattr(self.model, "num_parameters")
        )

    def store_flos(self) -> None:
        """Adds the operations counted since the last call to `state.total_flos`."""
        self.state.total_flos += self.current_flos
        self.current_flos = 0.0


def _write(path: Path, metrics: dict[str, Any]) -> None:
    path.write_text(json.dumps(metrics, indent=4, sort_keys=True) + "\n", encoding="utf-8")
