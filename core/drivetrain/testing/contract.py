"""The contract of a strategy: a class that its author inherits from in a test file, in three lines.

from drivetrain.testing import StrategyContract

class TestMine(StrategyContract):
    strategy = "mine"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from drivetrain.testing.contract_checkpoints import Checkpoints
from drivetrain.testing.contract_conduct import Conduct
from drivetrain.testing.contract_equality import Equality
from drivetrain.testing.contract_failures import Failures
from drivetrain.testing.machinery import Contract, contract_of


class StrategyContract(Equality, Conduct, Checkpoints, Failures):
    """What every strategy must hold, run in real processes under pytest.

    The strategy's package must be installed, so that its entry point is found. Nothing that the contract holds can be
    left out in silence: what is not tested is a skip with its reason, and a test that is put in the place of one of
    the contract's is an error.

    Attributes:
        strategy: the plugin's name.
        options: the plugin's own, as in `plugins={"mine": {...}}`.
        arguments: `TrainingArguments` that belong to the strategy; `single`, which it is compared with, gets none of
            them.
        settings: `TrainingArguments` of the training, which `single` gets too: `{"optim": "sgd"}` for a strategy that
            takes no other optimizer. They win over those of the contract's runs.
        processes: numbers of processes, each of which divides 12. With the first everything is run; with the others,
            that they are equal and go on from the first's checkpoints.
        engine: the class that the wrapped model or the optimizer is an instance of, by its name; or several.
        shards: what is spread over the processes: "parameters", "optimizer".
        refuses: of "bf16", "clipping", "accumulation" and "loss_scale" what the strategy cannot do, and why; it must
            then be an error before the first step that names the strategy.
        differs: why a run is not equal to that of `single`, in a sentence: for strategies that are local or lossy.
        equal_with: options, arguments and settings that make it equal all the same, laid over those above.
        leaves_out: tests that cannot be, and why; they are shown as skips.
        tolerance, bf16_tolerance: largest relative difference.
        learns: with `differs`, the share of what `single` learns that it must learn.
        limit: seconds for one run.
        patience: seconds that a rank may take to end when another has failed; torchrun leaves it 30.
        device: "cpu" or "cuda"; by default CUDA where there is a device for every process.
        environment: variables for the processes that are started.
    """

    strategy: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    arguments: ClassVar[Mapping[str, Any]] = {}
    settings: ClassVar[Mapping[str, Any]] = {}
    processes: ClassVar[tuple[int, ...]] = (2, 3)
    engine: ClassVar[str | tuple[str, ...]] = ()
    shards: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[Mapping[str, str]] = {}
    differs: ClassVar[str] = ""
    equal_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    leaves_out: ClassVar[Mapping[str, str]] = {}
    tolerance: ClassVar[float] = 2e-4
    bf16_tolerance: ClassVar[float] = 2e-2
    learns: ClassVar[float] = 0.5
    limit: ClassVar[float] = 120.0
    patience: ClassVar[float] = 20.0
    device: ClassVar[str] = ""
    environment: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        """Refuses what would empty the contract.

        Raises:
            TypeError: a test of the contract is replaced.
        """
        super().__init_subclass__()
        for name in vars(cls):
            if name.startswith("test_") and hasattr(StrategyContract, name):
                raise TypeError(
                    f"{cls.__name__} replaces {name} of the contract: name it in leaves_out with the reason, so that "
                    "it is shown as a skip, and give your own test another name."
                )

    @pytest.fixture
    def contract(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contract:
        """What a test is told of the runs."""
        return contract_of(request, tmp_path_factory)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """The numbers of processes are the author's."""
        if "others" in metafunc.fixturenames:
            metafunc.parametrize("others", type(self).processes[1:] or (0,))
