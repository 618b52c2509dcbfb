"""What ends a run ends it on every rank, in time, in a sentence."""

from __future__ import annotations

from drivetrain.testing.listener import planned
from drivetrain.testing.machinery import Contract, named, needs
from drivetrain.testing.scenario import Outcome


class Failures:
    """Part of the contract; see the module."""

    @needs(lambda plan: (plan.own("raised"),))
    def test_a_rank_that_raises(self, contract: Contract) -> None:
        """One rank's error ends all: that rank says its own, the others whose it was; and all processes are gone."""
        (outcome,) = contract.outcomes
        reason = planned(outcome.scenario.world - 1)
        _check(contract, outcome, reason)

    @needs(
        lambda plan: (plan.own("killed", world=max(plan.spec.processes)),),
        lambda spec: (
            "" if max(spec.processes) > 1 else "one process alone leaves nobody to say that it was killed"
        ),
    )
    def test_a_rank_that_is_killed(self, contract: Contract) -> None:
        """A rank that is gone without a word ends all: the others say so; and all processes are gone."""
        (outcome,) = contract.outcomes
        _check(contract, outcome, f"rank {outcome.scenario.world - 1}")

    @needs(lambda plan: (plan.own("misspelt"),))
    def test_a_wrong_option(self, contract: Contract) -> None:
        """An option that there is not is an error before anything begins, which names the nearest there is."""
        (outcome,) = contract.outcomes
        reasons = []
        for rank in outcome.ranks:
            words = [rank.misspelt, *(["Did you mean"] if rank.options else [])]
            if not rank.error:
                reasons.append(
                    f"rank {rank.rank} trained with the option {rank.misspelt!r}, which there is not"
                )
            elif missing := [word for word in words if word not in rank.error]:
                reasons.append(
                    f"rank {rank.rank} does not say {' and '.join(map(repr, missing))}: {rank.error}"
                )
        if reasons or len(outcome.ranks) < outcome.scenario.world:
            contract.fail(
                f"{named(outcome.scenario)} must be an error that names the option, and the nearest there is.",
                reasons or [outcome.trouble],
                "PluginInfo(options=...) names the dataclass of the options; drivetrain reads and checks them by it.",
            )


def _check(contract: Contract, outcome: Outcome, reason: str) -> None:
    reasons = [outcome.trouble] if outcome.trouble else []
    for rank in outcome.ranks:
        if not rank.error:
            reasons.append(f"rank {rank.rank} went on to the end, as if nothing had been")
        elif reason not in rank.error:
            reasons.append(f"rank {rank.rank} does not say that {reason}: {rank.error}")
    if reasons:
        contract.fail(
            f"{named(outcome.scenario)} does not end on every rank, in time, with the reason.",
            reasons,
            "errors must pass through micro_batch(), backward() and update(): a strategy that catches them, waits for "
            "the others, or has a process group of its own with another timeout holds up the rest.",
        )
