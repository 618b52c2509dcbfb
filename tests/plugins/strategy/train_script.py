"""Trains a toy under a strategy and saves what the test compares. Run by torchrun, or alone."""

from __future__ import annotations

import json
import os
import sys

import torch
from support.toy import accuracy, history, trainer


def main(folder: str, settings: dict[str, object]) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows_in_all = int(settings.pop("rows_in_all", 8))  # type: ignore[call-overload]
    resume = settings.pop("resume", None)
    settings.setdefault("per_device_train_batch_size", rows_in_all // world)
    trained = trainer(
        f"{folder}/run",
        compute_metrics=accuracy,
        num_train_epochs=2,
        logging_steps=3,
        evaluation_strategy="steps",
        eval_steps=4,
        **settings,
    )
    outcome = trained.train(resume_from_checkpoint=resume)
    predicted = trained.predict(trained.eval_dataset)
    if trained.is_world_process_zero():
        torch.save(
            {
                "weights": trained.model.state_dict(),
                "history": history(trained),
                "loss": outcome.training_loss,
                "predictions": torch.as_tensor(predicted.predictions),
                "strategy": type(trained.run.strategy).__name__,
            },
            f"{folder}/result-{world}.pt",
        )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
