"""One process of `options.py`: trains under one trainer and one set of options, a window of steps when it is told to.

Its only argument is a JSON object of `trainer`, `options`, `work`. On standard output it writes a line of JSON when it
is warm, and one after each window; on standard input it is told `go`, or `end`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from gpt import GPT, data
from strategies_work import memory
from torch.utils.checkpoint import checkpoint


class Model(GPT):
    """The GPT of the examples with the switch that transformers' models have, which both trainers use."""

    recomputes = False

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **more: Any) -> None:
        self.recomputes = True

    def gradient_checkpointing_disable(self) -> None:
        self.recomputes = False

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if not (self.recomputes and self.training):
            return super().forward(input_ids, labels)
        assert labels is not None
        x = self.byte(input_ids) + self.place.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        logits = self.head(self.norm(x))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def say(out: Any, **told: Any) -> None:
    out.write(json.dumps(told) + "\n")
    out.flush()


def main() -> int:
    spec = json.loads(sys.argv[1])
    work, out = spec["work"], os.fdopen(os.dup(1), "w")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- rows of the log, to the end of the process
    try:
        if spec["trainer"] == "transformers":
            from transformers import Trainer, TrainerCallback, TrainingArguments
        else:
            from drivetrain import (  # type: ignore[assignment]
                Trainer,
                TrainerCallback,
                TrainingArguments,
            )
    except ImportError as error:
        say(out, reason=str(error))
        return 0

    class Clock(TrainerCallback):  # type: ignore[misc, valid-type]
        """Holds the run at the edges of windows."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done = state.global_step - work["warm_up"]
            if done < 0 or done % work["window"]:
                return
            if done == 0:
                say(out, warm=time.perf_counter() - began)
            else:
                wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
                say(out, wall=wall / work["window"] * 1e3, cpu=cpu / work["window"] * 1e3)
            if sys.stdin.readline().strip() != "go":
                control.should_training_stop = True
            if done == 0:
                Path("/proc/self/clear_refs").write_text("5")  # the peak is that of steps alone
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    torch.set_num_threads(work["threads"])
    rows = data(work["context"], 0.1)["train"]
    with tempfile.TemporaryDirectory() as folder:

        def trainer(options: dict[str, Any], layers: int, width: int, callbacks: list[Any]) -> Any:
            torch.manual_seed(0)
            model = Model(layers, work["heads"], width, work["context"], dropout=0.0)
            common = {"learning_rate": 1e-3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
            common |= {"per_device_train_batch_size": work["batch"], "logging_steps": 1_000, "use_cpu": True}
            arguments = TrainingArguments(folder, **{**common, **options})
            return Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)

        # What is imported and made at the first use is not counted.
        trainer({"max_steps": 2}, 1, work["heads"] * 2, []).train()
        before = memory("VmRSS")
        made = trainer({"max_steps": 1_000_000, **spec["options"]}, work["layers"], work["width"], [Clock()])
        model = made.model
        began = time.perf_counter()
        loss = made.train().training_loss
    parameters = sum(parameter.numel() for parameter in model.parameters())
    peak = memory("VmHWM")
    say(out, peak=peak, growth=peak - before, loss=loss, parameters=parameters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
