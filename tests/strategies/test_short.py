"""The short form: two processes, every strategy once against one process, and one hop to each.

The long form, with one, two and four processes, is `nox -s strategies`.
"""

from __future__ import annotations

import itertools

import pytest
from rich.console import Console

from strategies.configurations import CONFIGURATIONS, Configuration, lacking
from strategies.planning import KINDS, Hop, variants
from strategies.running import Harness

TWO = [configuration for configuration in CONFIGURATIONS.values() if 2 in configuration.worlds]


def hops(configurations: list[Configuration]) -> dict[str, Hop]:
    """Each reads what the one before it wrote, the first what one process wrote; kinds of checkpoint take turns."""
    places = [("single", 1), *((configuration.name, 2) for configuration in configurations)]
    kinds = list(KINDS)
    return {
        reader[0]: Hop(*writer, *reader, kinds[number % 2])
        for number, (writer, reader) in enumerate(itertools.pairwise(places))
    }


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test waits for all runs


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    made = Harness(tmp_path_factory.mktemp("strategies"), Console(quiet=True), patience=60.0)
    there = [configuration for configuration in TWO if lacking(configuration) is None]
    made.run(variants(CONFIGURATIONS["single"], 1, ("whole",)))
    whole = [scenario for configuration in there for scenario in variants(configuration, 2, ("whole",))]
    made.run([*whole, *(hop.scenario(made.out) for hop in hops(there).values())])
    return made


def outcome(harness: Harness, configuration: Configuration, name: str) -> None:
    reason = lacking(configuration)
    if reason is not None:
        pytest.skip(reason)
    difference = harness.differences.get(name)
    assert difference is not None, f"{name} was not run"
    assert not difference.wrong, f"{name}: {'; '.join(difference.wrong)}"


@pytest.mark.parametrize("configuration", TWO, ids=lambda configuration: configuration.name)
def test_two_processes_are_one(harness: Harness, configuration: Configuration) -> None:
    """Losses, log, metrics, weights, optimizer, predictions in order; the real engine; what it shards."""
    outcome(harness, configuration, variants(configuration, 2, ("whole",))[0].name)


@pytest.mark.parametrize("configuration", TWO, ids=lambda configuration: configuration.name)
def test_a_run_goes_on_under_another_strategy(harness: Harness, configuration: Configuration) -> None:
    """From the checkpoint of another, to the end of the run that never changed."""
    there = hops([each for each in TWO if lacking(each) is None])
    name = there[configuration.name].name if configuration.name in there else ""
    outcome(harness, configuration, name)
