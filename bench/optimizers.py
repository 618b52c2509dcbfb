"""What an update costs under each optimizer, and what its state takes, beside torch's fused AdamW.

    python bench/optimizers.py [--rounds 30] [--words adamw_torch,lion] [--json OUT]

Parameters are those of a small transformer (1.8 million in 52 tensors). Optimizers take turns; a figure is the lowest
processor time of an update over the rounds, so that other work on the machine counts little. What is not installed is
left out with a line. The first update, in which torchao's is compiled, is given apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from typing import Any

import torch

from drivetrain import Trainer, TrainingArguments, discover
from drivetrain.errors import ConfigurationError

WORDS = (
    "adamw_torch", "adamw_hf", "adamw_anyprecision", "schedule_free_adamw", "schedule_free_sgd",
    "schedule_free_radam", "lion", "lion_32bit", "adamw_bnb_8bit", "lion_8bit", "adamw_torch_8bit", "adamw_torch_4bit",
    "galore_adamw", "adafactor", "muon", "sgd",
)  # fmt: skip
ARGS = {"galore_adamw": "target_modules=all-linear,rank=32"}


class Net(torch.nn.Module):
    """Four blocks of a transformer, a table of words before them and a head behind."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(1000, 192)
        block = torch.nn.TransformerEncoderLayer(192, 4, 768, batch_first=True)
        self.blocks = torch.nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = torch.nn.Linear(192, 10)


class Case:
    """One optimizer on its own copy of the model, with gradients that are the same each time."""

    def __init__(self, word: str) -> None:
        torch.manual_seed(0)
        args = TrainingArguments(
            tempfile.mkdtemp(), optim=word, optim_args=ARGS.get(word), lr_scheduler_type="constant", report_to="none",
            use_cpu=True, weight_decay=0.1,
        )  # fmt: skip
        trainer = Trainer(Net(), args)
        self.optimizer = trainer.create_optimizer()
        if callable(train := getattr(self.optimizer, "train", None)):
            train()
        self.parameters = list(trainer.model.parameters())
        self.gradients = [torch.randn_like(p) for p in self.parameters]
        self.seconds: list[float] = []
        self.step()
        self.first = self.seconds.pop()

    def step(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient.clone()  # some optimizers use its memory
        start = time.process_time()
        self.optimizer.step()
        self.seconds.append(time.process_time() - start)

    def bytes_an_element(self) -> float:
        elements = sum(p.numel() for p in self.parameters)
        return sum(_bytes(value) for value in self.optimizer.state.values()) / elements


def _bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):
            return sum(_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.numel() * value.element_size()
    return _bytes(vars(value)) if hasattr(value, "ortho_matrix") else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--words", default=",".join(WORDS))
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases: dict[str, Case] = {}
    for word in options.words.split(","):
        try:
            discover.load_info("optimizer", word)
            cases[word] = Case(word)
        except ConfigurationError as error:
            print(f"{word}: left out: {error}")
    for _ in range(options.rounds):
        for case in cases.values():
            case.step()
    base = min(cases["adamw_torch"].seconds) if "adamw_torch" in cases else None
    out: dict[str, Any] = {}
    print(f"{'optimizer':22}{'ms':>8}{'to fused':>10}{'first, s':>10}{'bytes':>8}")
    for word, case in cases.items():
        lowest = min(case.seconds)
        out[word] = {
            "ms": lowest * 1e3,
            "ratio": lowest / base if base else None,
            "first": case.first,
            "bytes": case.bytes_an_element(),
        }
        ratio = f"{lowest / base:10.2f}" if base else " " * 10
        print(f"{word:22}{lowest * 1e3:8.2f}{ratio}{case.first:10.2f}{case.bytes_an_element():8.1f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(out, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
