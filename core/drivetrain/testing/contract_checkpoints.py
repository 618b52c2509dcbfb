"""Saving, loading, going on: in the same strategy, from `single`, to `single`, with other numbers of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain.testing import comparing, meaning, states
from drivetrain.testing.comparing import Finding
from drivetrain.testing.contract_equality import agreement, no_others, not_equal, switched_off
from drivetrain.testing.machinery import Contract, named, needs
from drivetrain.testing.plan import CHECKPOINTS, Plan, going_on
from drivetrain.testing.scenario import LAST, Outcome, Scenario
from drivetrain.testing.spec import Spec

EXACT = 1e-6
"""A resume in the same strategy may differ by what sums in another order do."""

WHICH = pytest.mark.parametrize("which", list(CHECKPOINTS))


def carries(spec: Spec, which: str, equal: bool = False) -> str:
    """Why no checkpoint carries gradients, or ""."""
    return switched_off(spec, "accumulation", equal) if which == "left" else ""


class Checkpoints:
    """Part of the contract; see the module."""

    @needs(lambda plan: (plan.equal("whole"), plan.reference("whole")), lambda spec: not_equal(spec))
    def test_checkpoints(self, contract: Contract) -> None:
        """What is written is what `single` writes: weights, optimizer, gradients, schedule, place in the data."""
        contract.ended()
        own, single = contract.outcomes
        for step in (*CHECKPOINTS.values(), LAST):
            folders = [outcome.scenario.checkpoints / f"checkpoint-{step}" for outcome in (own, single)]
            if findings := states.checkpoints(folders[0], folders[1], contract.spec.tolerance):
                contract.fail(
                    f"{named(own.scenario)} writes another checkpoint-{step} than `single`.",
                    findings,
                    meaning.of_state(findings),
                )

    @WHICH
    @needs(
        lambda plan, which: (going_on(plan.own("whole"), plan.reference("whole", False), which),),
        lambda spec, which: carries(spec, which),
    )
    def test_restores(self, contract: Contract, which: str) -> None:
        """Right after a checkpoint of `single` is restored, state_out() gives what stands in it."""
        contract.ended()
        _check_restored(contract, contract.outcomes[0])

    @WHICH
    @needs(
        lambda plan, which: (going_on(plan.own("whole"), plan.own("whole"), which), plan.own("whole")),
        lambda spec, which: carries(spec, which),
    )
    def test_resumes(self, contract: Contract, which: str) -> None:
        """A run that goes on ends exactly as the one that was never interrupted."""
        contract.ended()
        found, wanted = contract.outcomes
        _check_goes_on(contract, found, wanted, EXACT)

    @WHICH
    @needs(
        lambda plan, which: (
            going_on(plan.equal("whole"), plan.reference("whole"), which),
            plan.reference("whole"),
        ),
        lambda spec, which: not_equal(spec) or carries(spec, which, True),
    )
    def test_goes_on_from_single(self, contract: Contract, which: str) -> None:
        """A checkpoint of `single` in one process goes on under this strategy."""
        contract.ended()
        found, wanted = contract.outcomes
        _check_goes_on(contract, found, wanted, contract.spec.tolerance)

    @WHICH
    @needs(
        lambda plan, which: (
            going_on(plan.reference("whole", not not_equal(plan.spec)), _written(plan), which),
            plan.reference("whole", not not_equal(plan.spec)),
        ),
        lambda spec, which: carries(spec, which, True),
    )
    def test_single_goes_on(self, contract: Contract, which: str) -> None:
        """A checkpoint of this strategy goes on under `single` in one process."""
        contract.ended()
        found, wanted = contract.outcomes
        if not_equal(contract.spec):  # it goes on with other weights: to the same step, and learning
            if (
                found.ranks[0].events[-1] != wanted.ranks[0].events[-1]
                or not found.losses[-1] < wanted.losses[0]
            ):
                contract.fail(
                    f"{named(found.scenario)} does not go on as a training does.",
                    [
                        f"its last loss is {found.losses[-1]:.4g}; the first of a whole run is {wanted.losses[0]:.4g}"
                    ],
                )
            return
        _check_goes_on(contract, found, wanted, contract.spec.tolerance)

    @WHICH
    @needs(
        lambda plan, others, which: (
            going_on(plan.equal("whole", others), _written(plan), which),
            plan.reference("whole"),
        ),
        lambda spec, others, which: no_others(spec, others) or not_equal(spec) or carries(spec, which, True),
    )
    def test_goes_on_with(self, contract: Contract, others: int, which: str) -> None:
        """A checkpoint of the first number of processes goes on with another, with the same rows in every update."""
        contract.ended()
        found, wanted = contract.outcomes
        _check_goes_on(contract, found, wanted, contract.spec.tolerance)


def _written(plan: Plan) -> Scenario:
    """The run whose checkpoints others go on from."""
    return plan.own("whole") if not_equal(plan.spec) else plan.equal("whole")


def _check_goes_on(contract: Contract, found: Outcome, wanted: Outcome, tolerance: float) -> None:
    findings: list[Finding] = []
    if not 0 < len(found.losses) < len(wanted.losses):
        findings = [
            Finding(
                "losses",
                f"{len(found.losses)} micro-batches were trained of the {len(wanted.losses)} of a whole run",
            )
        ]
    findings += comparing.run(found, wanted, tolerance) + agreement(found)
    ends = [Path(outcome.scenario.checkpoints) / f"checkpoint-{LAST}" for outcome in (found, wanted)]
    findings += states.checkpoints(ends[0], ends[1], tolerance)
    if findings:
        contract.fail(
            f"{named(found.scenario)} does not end as the run that was never interrupted.",
            findings,
            meaning.of_resume(found, findings),
        )


def _check_restored(contract: Contract, outcome: Outcome) -> None:
    folder = Path(outcome.scenario.resume or "")
    if findings := states.against_checkpoint(outcome.restored, folder):
        contract.fail(
            f"{named(outcome.scenario)} does not hold what it was given by state_in().",
            findings,
            meaning.of_state(findings),
        )
