"""SignSGD keeps the contract of every strategy."""

from __future__ import annotations

from drivetrain.testing import StrategyContract


class TestSignSGD(StrategyContract):
    strategy = "signsgd"
    differs = "Of each gradient one bit an element is sent."
    refuses = {"loss_scale": "What is infinite has no size to be sent."}
