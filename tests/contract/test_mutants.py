"""The contract can fail: each fault of a strategy is found by the test that is meant to, in words that help."""

from __future__ import annotations

import pytest

from contract.trying import Mutant, Trial

SHORT = [
    Mutant(
        "clipped while scaled", "test_equals_single[scaled]", ("update 2 is", "still carry the loss scale")
    ),
    Mutant("summed", "test_equals_single[plain]", ("2 times as large", "summed over the processes")),
    Mutant("unsynchronised", "test_equals_single[plain]", ("weights on rank 1", "not brought together")),
    Mutant("rows of the last batch", "test_equals_single[plain]", ("update 4", "`run.batch_weight`")),
    Mutant("accumulation", "test_equals_single[accumulating]", ("3 times as large", "`run.accumulation`")),
    Mutant("clipped alone", "test_equals_single[clipped]", ("gradient norm of update 1", "brought together")),
    Mutant("late", "test_gradients", ("shows other gradients", "as the step will take it")),
    Mutant("order", "test_every_row_counts_once", ("rows come as", "rank 0's first")),
    Mutant("wrapped", "test_gives_the_bare_model_back", ("close() gave a Wrapped",)),
    Mutant("no optimizer state", "test_restores[mid]", ("optimizer:", "step counters")),
    Mutant("no buffers", "test_restores[mid]", ("buffers: trained is", "set them")),
    Mutant("hangs", "test_a_rank_that_raises", ("rank 0 took too long", "bring_together"), {"patience": 3.0}),
]

LONG = [
    Mutant(
        "schedule of what is skipped",
        "test_equals_single[scaled]",
        ("learning_rate in row", "update that stepped"),
    ),
    Mutant("says it stepped", "test_equals_single[scaled]", ("update 1 steps, and must be skipped",)),
    Mutant(
        "divided twice",
        "test_equals_single[plain]",
        ("0.5 times", "divided by the number of processes twice"),
    ),
    Mutant("biases alone", "test_equals_single[plain]", ("weights on rank 1", "not for every parameter")),
    Mutant("own weights", "test_equals_single[plain]", ("weights on rank 1", "different weights")),
    Mutant("other weights", "test_equals_single[plain]", ("micro-batch 1 is", "The very first loss differs")),
    Mutant("steps twice", "test_equals_single[plain]", ("part at update 2", "so the step is not")),
    Mutant("no schedule", "test_equals_single[whole]", ("learning_rate in row", "that of the schedule")),
    Mutant(
        "accumulation twice", "test_equals_single[accumulating]", ("0.333 times", "by the accumulation twice")
    ),
    Mutant("drops what is left over", "test_equals_single[accumulating]", ("left over must be kept",)),
    Mutant("not clipped", "test_equals_single[clipped]", ("tells no gradient norm",)),
    Mutant("norm of what is left", "test_equals_single[clipped]", ("norm is taken after clipping",)),
    Mutant("one group", "test_checkpoints", ("groups hold other parameters",)),
    Mutant("hooks left", "test_gives_the_bare_model_back", ("hooks are left on its modules",)),
    Mutant("gradient hooks left", "test_gives_the_bare_model_back", ("hooks are left on its parameters",)),
    Mutant("unties", "test_gives_the_bare_model_back", ("head.weight and embedding.weight were one",)),
    Mutant("thaws", "test_gives_the_bare_model_back", ("frozen.weight is trained",)),
    Mutant("no gradients", "test_resumes[left]", ("carried",)),
    Mutant("no gradients", "test_restores[left]", ("gradients:", "unfinished accumulation")),
    Mutant("no optimizer state", "test_resumes[mid]", ("begins right and parts later",)),
    Mutant("no buffers", "test_resumes[mid]", ("buffers: trained is",)),
    Mutant("learns nothing", "test_learns", ("does not learn",), {"differs": "it learns nothing"}),
    Mutant("", "test_engine", ("DistributedDataParallel",), {"engine": "DistributedDataParallel"}),
    Mutant("", "test_shards", ("does not spread the optimizer",), {"shards": ("optimizer",)}),
    Mutant("", "test_bf16", ("rank 0 trained", "ConfigurationError"), {"refuses": {"bf16": "so it says"}}),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test waits for all runs


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The runs of those that are tried in this session."""
    chosen = [item for item in request.session.items if item.module is request.module]
    mutants = [item.callspec.params["mutant"] for item in chosen if hasattr(item, "callspec")]
    return Trial(mutants, tmp_path_factory.mktemp("mutants"))


def check(trial: Trial, mutant: Mutant) -> None:
    message = trial.message(mutant)
    print(message)
    assert message, f"{mutant.test} does not see it"
    assert [word for word in mutant.says if word not in message] == [], message


@pytest.mark.parametrize("mutant", SHORT, ids=lambda mutant: mutant.name)
def test_a_fault_is_found_and_explained(trial: Trial, mutant: Mutant) -> None:
    check(trial, mutant)


@pytest.mark.soak
@pytest.mark.parametrize("mutant", LONG, ids=lambda mutant: mutant.name)
def test_another_fault_is_found_and_explained(trial: Trial, mutant: Mutant) -> None:
    check(trial, mutant)
