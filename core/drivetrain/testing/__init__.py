"""The public kit: what a plugin's author runs to know that the plugin holds what drivetrain promises.

from drivetrain.testing import StrategyContract

class TestMine(StrategyContract):
    strategy = "mine"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivetrain.testing.contract import StrategyContract as StrategyContract

__all__ = ["StrategyContract"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'drivetrain.testing' has no attribute {name!r}")
    try:
        from drivetrain.testing import contract
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise ModuleNotFoundError(
            "drivetrain.testing needs pytest, which is not installed. Run: pip install 'drivetrain[testing]'",
            name="pytest",
        ) from None
    return getattr(contract, name)
