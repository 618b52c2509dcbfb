"""That a run is equal to the one of `single`: losses, norms, log, weights, predictions, metrics."""

from __future__ import annotations

import pytest

from drivetrain.testing import comparing, meaning
from drivetrain.testing.comparing import Finding
from drivetrain.testing.machinery import Contract, named, needs
from drivetrain.testing.scenario import Outcome
from drivetrain.testing.spec import Spec

WHAT = {"accumulating": "accumulation", "clipped": "clipping", "scaled": "loss_scale"}
"""The features that a run is about."""

SWITCHES = {"accumulation": ("gradient_accumulation_steps", (1,)), "clipping": ("max_grad_norm", (0, None))}
"""The argument of a feature, and the values that turn it off."""


def not_equal(spec: Spec) -> str:
    """Why the strategy is not compared with `single`, or ""."""
    return spec.differs if spec.differs and not spec.equal_with else ""


def switched_off(spec: Spec, feature: str, equal: bool = True) -> str:
    """Why a feature cannot be tried, or ""."""
    if feature in spec.refuses:
        return f"{spec.strategy!r} refuses {feature}: {spec.refuses[feature]}"
    if feature not in SWITCHES:
        return ""
    name, values = SWITCHES[feature]
    settings = spec.layer("settings", equal)
    return (
        f"settings turn {feature} off ({name}={settings[name]!r})" if settings.get(name, 2) in values else ""
    )


def no_others(spec: Spec, others: int) -> str:
    """Why no other number of processes is tried, or ""."""
    return "" if others else f"processes = {spec.processes!r} names no other number: (2, 3), say"


class Equality:
    """Part of the contract; see the module."""

    @pytest.mark.parametrize("kind", ["plain", "accumulating", "clipped", "whole", "scaled"])
    @needs(
        lambda plan, kind: (plan.equal(kind), plan.reference(kind)),
        lambda spec, kind: not_equal(spec) or (switched_off(spec, WHAT[kind]) if kind in WHAT else ""),
    )
    def test_equals_single(self, contract: Contract, kind: str) -> None:
        """Every micro-batch's loss, every update's norm, the log, weights, and predictions."""
        _check(contract, contract.spec.tolerance)

    @needs(
        lambda plan: (plan.equal("bf16"), plan.reference("bf16")),
        lambda spec: not_equal(spec) if "bf16" not in spec.refuses else "",
    )
    def test_bf16(self, contract: Contract) -> None:
        """The same in bf16, which is autocast over weights that stay fp32; or an error before the first step."""
        if "bf16" in contract.spec.refuses:
            _check_refused(contract, "bf16")
        else:
            _check(contract, contract.spec.bf16_tolerance)

    @pytest.mark.parametrize("feature", list(WHAT.values()))
    @needs(
        lambda plan, feature: (plan.own(next(kind for kind, what in WHAT.items() if what == feature)),),
        lambda spec, feature: "" if feature in spec.refuses else f"it does not refuse {feature}",
    )
    def test_refuses(self, contract: Contract, feature: str) -> None:
        """What the author says it refuses is an error before the first step."""
        _check_refused(contract, feature)

    @needs(
        lambda plan, others: (plan.equal("whole", others), plan.reference("whole")),
        lambda spec, others: no_others(spec, others) or not_equal(spec),
    )
    def test_equals_single_with(self, contract: Contract, others: int) -> None:
        """The same with other numbers of processes: an update has the same rows."""
        _check(contract, contract.spec.tolerance)

    @needs(
        lambda plan: (plan.own("whole"), plan.reference("whole", False)),
        lambda spec: "" if spec.differs else "it is equal to `single`, which says more",
    )
    def test_learns(self, contract: Contract) -> None:
        """Of a strategy that differs: its evaluation loss falls nearly as far as that of `single`."""
        contract.ended()
        own, single = (_evaluations(outcome) for outcome in contract.outcomes)
        fall, expected = own[0] - own[-1], single[0] - single[-1]
        if not fall >= contract.spec.learns * expected:
            contract.fail(
                f"{named(contract.outcomes[0].scenario)} does not learn.",
                [
                    f"the evaluation loss goes from {own[0]:.4g} to {own[-1]:.4g}; that of `single` from "
                    f"{single[0]:.4g} to {single[-1]:.4g}, of which it must make {contract.spec.learns:g} (learns)"
                ],
            )


def _evaluations(outcome: Outcome) -> list[float]:
    """Evaluation losses: of the first evaluation in the run, and of the prediction at the end."""
    rows = [row["eval_loss"] for row in outcome.ranks[0].log if "eval_loss" in row]
    return [outcome.losses[0], *rows]


def _check(contract: Contract, tolerance: float) -> None:
    contract.ended()
    found, wanted = contract.outcomes
    findings = comparing.run(found, wanted, tolerance)
    training_loss = [found.ranks[0].training_loss], [wanted.ranks[0].training_loss]
    findings += comparing.numbers("training loss", "the loss that train() returns", *training_loss, tolerance)
    findings += agreement(found)
    if findings:
        contract.fail(
            f"{named(found.scenario)} is not that of `single` in one process.",
            findings,
            meaning.of_run(found, wanted, findings),
        )


def agreement(outcome: Outcome) -> list[Finding]:
    """What ranks must have alike and do not."""
    made = []
    for what in ("weights", "predictions", "metrics", "log", "training_loss"):
        values = [getattr(rank, what) for rank in outcome.ranks]
        odd = [rank.rank for rank, value in zip(outcome.ranks, values, strict=True) if value != values[0]]
        if odd:
            text = f"{what.replace('_', ' ')} on rank {', '.join(map(str, odd))} are not those on rank 0"
            made.append(Finding("ranks", text))
    return made


def _check_refused(contract: Contract, feature: str) -> None:
    (outcome, *_) = contract.outcomes
    spec, reasons = contract.spec, []
    for rank in outcome.ranks:
        words = (spec.strategy, SWITCHES[feature][0] if feature in SWITCHES else feature)
        if not rank.error:
            reasons.append(f"rank {rank.rank} trained")
        elif rank.began:
            reasons.append(f"rank {rank.rank} failed only after the first step: {rank.error}")
        elif missing := [word for word in words if word not in rank.error]:
            reasons.append(f"rank {rank.rank} does not name {' and '.join(missing)}: {rank.error}")
    if reasons or len(outcome.ranks) < outcome.scenario.world:
        contract.fail(
            f"{spec.strategy!r} is said to refuse {feature}, which must be an error before the first step.",
            reasons or [outcome.trouble],
            "a probe in the PluginInfo, or setup(), raises ConfigurationError.",
        )
