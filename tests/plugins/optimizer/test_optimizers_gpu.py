"""Optimizers whose kernels are a device's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer, weights_equal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run_of(folder: Path, word: str, resume: Path | None = None, **values: Any) -> Any:
    made = trainer(folder, data=rows(80), optim=word, max_steps=10, save_strategy="steps", save_steps=5, use_cpu=False,
                   weight_decay=0.1, **values)  # fmt: skip
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return made


@pytest.mark.parametrize(
    ("word", "package"),
    [
        ("adamw_bnb_8bit", "bitsandbytes"),
        ("paged_adamw_32bit", "bitsandbytes"),
        ("paged_lion_8bit", "bitsandbytes"),
        ("lion_32bit", "bitsandbytes"),
        ("adamw_apex_fused", "apex.optimizers"),
        ("schedule_free_adamw", "schedulefree"),
    ],
)
def test_a_resume_on_the_device_is_exact(tmp_path, word, package):
    pytest.importorskip(package)
    arguments = {"optim_args": "min_8bit_size=64"} if "8bit" in word else {}
    whole = run_of(tmp_path / "whole", word, **arguments)
    again = run_of(tmp_path / "again", word, tmp_path / "whole" / "checkpoint-5", **arguments)
    assert next(whole.model.parameters()).is_cuda
    assert weights_equal(whole.model, again.model)


@pytest.mark.parametrize(
    ("word", "package"), [("paged_adamw_32bit", "bitsandbytes"), ("adamw_apex_fused", "apex.optimizers")]
)
def test_it_is_torchs_adamw(tmp_path, word, package):
    pytest.importorskip(package)
    one = run_of(tmp_path / "one", word)
    other = run_of(tmp_path / "other", "adamw_torch")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=1e-4, atol=1e-5)
