"""How a strategy behaves beside the numbers: what it is, what it spreads, events, gradients, evaluation, the end."""

from __future__ import annotations

from drivetrain.testing import comparing, meaning
from drivetrain.testing.comparing import Finding, of_tensors, tensors
from drivetrain.testing.contract_equality import agreement, not_equal
from drivetrain.testing.machinery import Contract, named, needs
from drivetrain.testing.model import EVALUATED_ROWS
from drivetrain.testing.scenario import Outcome

ROOM = 1.3
"""A rank's share may be larger by this factor: engines pad."""


class Conduct:
    """Part of the contract; see the module."""

    @needs(lambda plan: (plan.own("whole"),))
    def test_is_chosen(self, contract: Contract) -> None:
        """The run is under this strategy, and under no other that took its place."""
        contract.ended()
        for rank in contract.outcomes[0].ranks:
            if rank.strategy != contract.spec.strategy:
                contract.fail(
                    f"The run asked for strategy {contract.spec.strategy!r} and ran under {rank.strategy!r}.",
                    ["`arguments` name another strategy, or choose one"],
                )

    @needs(
        lambda plan: (plan.own("whole"),),
        lambda spec: "" if spec.engine else 'engine = "CLASS" names no class of the engine',
    )
    def test_engine(self, contract: Contract) -> None:
        """What wraps the model, or updates it, is the engine that is meant."""
        contract.ended()
        for rank in contract.outcomes[0].ranks:
            if missing := [name for name in contract.spec.engines if name not in rank.classes]:
                contract.fail(
                    f"{named(contract.outcomes[0].scenario)} does not run on {' and '.join(missing)}.",
                    [f"rank {rank.rank} has {', '.join(rank.classes)}"],
                    "prepare() gives the bare model back, or another engine's wrapper.",
                )

    @needs(
        lambda plan: (plan.own("whole"), plan.reference("whole", False)),
        lambda spec: (
            "one process holds everything"
            if spec.world == 1
            else ("" if spec.shards else "shards = () says that nothing is spread")
        ),
    )
    def test_shards(self, contract: Contract) -> None:
        """What is said to be spread over the processes is: each holds its part, and all together the whole."""
        contract.ended()
        own, single = contract.outcomes
        for what in contract.spec.shards:
            whole = single.ranks[0].held[what]
            held = [rank.held[what] for rank in own.ranks]
            most = ROOM * whole / own.scenario.world
            if max(held) > most or sum(held) < whole:
                contract.fail(
                    f"{named(own.scenario)} does not spread the {what}.",
                    [
                        f"the ranks hold {', '.join(map(str, held))} elements of {whole}; each may hold {most:.0f}, "
                        "and together they must hold them all"
                    ],
                    f"shards = {contract.spec.shards!r} says more than the engine does, or the state is not in "
                    "optimizer.state.",
                )

    @needs(lambda plan: (plan.own("whole"), plan.own("alone")))
    def test_ranks_agree(self, contract: Contract) -> None:
        """At the end every process has the same weights, predictions, metrics and log."""
        contract.ended()
        for outcome in contract.outcomes:
            if findings := agreement(outcome):
                contract.fail(
                    f"After {named(outcome.scenario, 'the')} the ranks do not agree.",
                    findings,
                    "weights must be brought together at the latest before evaluations, checkpoints and the end of "
                    "training; collect() must give the same to every rank.",
                )

    @needs(lambda plan: (plan.own("whole"), plan.own("alone")))
    def test_every_row_counts_once(self, contract: Contract) -> None:
        """Predictions are those of all rows in order, on every rank, whatever the last batch."""
        contract.ended()
        for outcome in contract.outcomes:
            order = outcome.tensors["predictions"]["numbers"].flatten().tolist()
            if order != list(range(EVALUATED_ROWS)):
                text = (
                    f"rows come as {', '.join(map(str, order[:10]))}, ...: {len(order)} of {EVALUATED_ROWS}"
                )
                contract.fail(
                    f"{named(outcome.scenario)} does not predict every row once and in order.",
                    [text],
                    meaning.of_order(outcome),
                )
            if not all(rank.metrics_saw_the_same for rank in outcome.ranks):
                contract.fail(
                    f"In {named(outcome.scenario, 'the')} compute_metrics saw other arrays.",
                    ["it must see what predict gives back"],
                )

    @needs(lambda plan: (plan.own("alone"), plan.reference("alone", False)))
    def test_evaluates_without_training(self, contract: Contract) -> None:
        """`evaluate` and `predict` of a fresh trainer: prepare(model, None, None)."""
        contract.ended()
        own, single = contract.outcomes
        findings = comparing.predictions(own, single, contract.spec.tolerance)
        findings += tensors("weights", own.tensors["weights"], single.tensors["weights"], 0.0, True)
        for key, value in single.ranks[0].log[0].items():
            mine = own.ranks[0].log[0].get(key)
            findings += comparing.numbers(
                "metrics", f"evaluate()'s {key}", [mine], [value], contract.spec.tolerance
            )
        findings += [Finding("bare", text) for rank in own.ranks for text in rank.bare]
        if findings:
            contract.fail(
                f"{named(own.scenario)} is not that of `single`.",
                findings,
                "prepare(model, None, None) is an evaluation by itself: the model is placed or wrapped, not "
                "changed, and close() gives it back.",
            )

    @needs(lambda plan: (plan.own("whole"), plan.reference("whole", False)))
    def test_events(self, contract: Contract) -> None:
        """Listeners hear the same events, in the same order, on every rank."""
        contract.ended()
        own, single = contract.outcomes
        wanted = single.ranks[0].events
        for rank in own.ranks:
            if rank.events != wanted:
                place = next(
                    (
                        n
                        for n, pair in enumerate(zip(rank.events, wanted, strict=False))
                        if pair[0] != pair[1]
                    ),
                    min(len(rank.events), len(wanted)),
                )
                heard = rank.events[place] if place < len(rank.events) else "nothing more"
                meant = wanted[place] if place < len(wanted) else "nothing more"
                contract.fail(
                    f"In {named(own.scenario, 'the')} listeners on rank {rank.rank} hear other events.",
                    [f"event {place + 1} is {heard!r}, not {meant!r}"],
                    "update() raised, or counted otherwise than once: one call of update() is one step.",
                )

    @needs(lambda plan: (plan.own("gradients"), plan.own("plain"), plan.reference("gradients", False)))
    def test_gradients(self, contract: Contract) -> None:
        """`shows_gradients` is true: listeners read and change what the step takes; or they are refused."""
        own, plain, single = contract.outcomes
        contract.ended(plain, single)
        if not plain.ranks[0].shows_gradients:
            _check_listener_refused(contract, own)
            return
        contract.ended(own)
        findings = _gradients(own, single, contract.spec.tolerance) if not contract.spec.differs else []
        if not own.tensors["gradients"]:
            findings = [
                Finding("gradients", "no parameter of run.model has a gradient at on_gradients_ready")
            ]
        if not findings and not not_equal(contract.spec) and not contract.spec.differs:
            findings = comparing.weights(
                own.tensors["weights"], single.tensors["weights"], contract.spec.tolerance
            )
        if findings:
            contract.fail(
                f"{named(own.scenario)} shows other gradients than `single`, though shows_gradients is True.",
                findings,
                "at on_gradients_ready `.grad` of each parameter must be the whole update's, as the step will take it; "
                "where an engine keeps it elsewhere, shows_gradients = False.",
            )

    @needs(lambda plan: (plan.own("plain"),))
    def test_gives_the_bare_model_back(self, contract: Contract) -> None:
        """After training: the same model, parameters, ties and names, with no hooks, which one rank can call alone."""
        (own,) = contract.outcomes
        contract.ended()
        findings = [
            Finding("bare", f"on rank {rank.rank}: {text}") for rank in own.ranks for text in rank.bare
        ]
        if findings:
            contract.fail(
                f"After {named(own.scenario, 'the')} the model is not the bare one again.",
                findings,
                "close() must undo what prepare() did to the model, and give the bare one back.",
            )

    @needs(
        lambda plan: (plan.equal("plain"), plan.reference("plain")),
        lambda spec: not_equal(spec),
    )
    def test_trains_again(self, contract: Contract) -> None:
        """A second train() of the same trainer, from where the first has ended."""
        contract.ended()
        own, single = contract.outcomes
        findings = comparing.numbers(
            "losses",
            "the loss of micro-batch {} of the second training",
            own.again,
            single.again,
            contract.spec.tolerance,
        )
        if findings:
            contract.fail(
                f"After {named(own.scenario, 'the')} the same trainer trains otherwise than `single`'s.",
                findings,
                "something of the first run is left: in the model, in the plugin's object (make_strategy makes a new "
                "strategy for each run), or gradients."
                if not comparing.numbers("", "", own.losses, single.losses, contract.spec.tolerance)
                else "the first training differs already: see test_equals_single[plain].",
            )


def _gradients(own: Outcome, single: Outcome, tolerance: float) -> list[Finding]:
    """The first update's, and a word on how many times too large they are."""
    here, there = own.tensors["gradients"], single.tensors["gradients"]
    findings = tensors("gradients", here, there, max(tolerance, 1e-4))
    if findings and here.keys() == there.keys():
        worst = max(here, key=lambda name: of_tensors(here[name], there[name]))
        ratio = comparing.factor(here[worst], there[worst])
        if ratio is not None and (cause := meaning.of_factor(ratio, own.scenario)):
            findings.append(Finding("gradients", cause))
    return findings


def _check_listener_refused(contract: Contract, own: Outcome) -> None:
    reasons = [
        f"rank {rank.rank}: {rank.error or 'it trained, and the listener was given no gradient'}"
        for rank in own.ranks
        if rank.began or contract.spec.strategy not in rank.error or "gradient" not in rank.error
    ]
    if reasons or len(own.ranks) < own.scenario.world:
        contract.fail(
            f"{contract.spec.strategy!r} shows no gradients, so a listener of on_gradients_ready must be refused.",
            reasons or [own.trouble],
        )
