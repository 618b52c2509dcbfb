"""A model card is written without a push."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.toy import trainer


def test_a_card_needs_no_push(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    made = trainer(tmp_path / "toy", max_steps=2)
    made.train()
    made.create_model_card(model_name="a toy", tags="toy")
    text = (tmp_path / "toy" / "README.md").read_text(encoding="utf-8")
    assert "a toy" in text
    assert "learning_rate" in text
