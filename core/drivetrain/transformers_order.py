"""The order of the epoch under way in a checkpoint of transformers, which does not hold it.

4.34.0 makes it again when it resumes, after it has drawn something for each epoch before. Of one process it draws from
torch's global generator: one number for an epoch, where the loader had drawn two, and evaluations and dropout as many
as they liked. So from the second epoch on the order is another than the one that was begun, and rows are seen twice.
Where the generator that was saved stands just where the loaders' draws alone would have left it (on a GPU, whose
dropout has a generator of its own, it mostly does), the order that was begun is known, and is gone on with. Else it is
4.34.0's.

Of several processes accelerate gives the sampler a generator that nobody seeds; each epoch takes two permutations
of it, so its order is always known.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import RandomSampler, SequentialSampler

from drivetrain.checkpoint import RandomState
from drivetrain.data import SeededRandomSampler, randomness
from drivetrain.data.loader import fetches_ahead
from drivetrain.data.source import MAP, draw, generators_of, group_of, kind_of, map_order, needs_no_state
from drivetrain.gathering import broadcast

if TYPE_CHECKING:
    from drivetrain.run import Run


def position_in_data(
    run: Run, epoch: int, done: int, world: int, evaluations: Counter[int], saved: RandomState | None
) -> tuple[dict[str, Any] | None, str | None]:
    """The position in the data, None at an epoch's beginning, and what is to be said of it. A collective.

    Args:
        run: the run; the generators stand as at the beginning of training.
        epoch: the epoch under way.
        done: micro-batches of it that are done.
        world: processes that wrote the checkpoint.
        evaluations: epoch -> evaluations in it, up to the checkpoint.
        saved: rank 0's random generators, as they were saved.
    """
    assert run.split is not None
    loader, note = run.train_dataloader, None
    plain = kind_of(loader) == MAP and needs_no_state(loader)
    shuffled = plain and isinstance(loader.batch_sampler.sampler, RandomSampler)
    if kind_of(loader) == MAP and done:
        note = _other_order(epoch, world, run.args)
    if world == 1 and not (
        epoch and done and _is_drawn(loader) and _as_begun(run, epoch, evaluations, saved)
    ):
        for _ in range(epoch):
            _pass_over(run)
        if epoch and done and _is_drawn(loader):
            note = (
                f"The random states that were saved do not tell the order in which epoch {epoch} was begun, so that it "
                "is the one that transformers makes when it resumes: some of its rows may be seen twice and some not."
            )
    if not done:
        return None, None
    group = group_of(loader, run.split.world)
    batch = done // run.split.parts
    data: dict[str, Any] = {
        "batch": batch,
        "row": batch * group,
        "group": group,
        "epoch": epoch,
        "world": run.processes.world_size,
    }
    start = randomness.capture()
    if not plain:
        data["start"] = randomness.to_json(start)
        data["generators"] = [randomness.tensor_to_text(g.get_state()) for g in generators_of(loader)]
    elif shuffled and world > 1:
        data["base_seed"] = broadcast(draw(), run.processes)
        data["seed"] = torch.Generator().initial_seed()
        data["permutation"] = 2 * epoch
    else:
        order = map_order(loader, run.processes, run.processes.world_size)
        data["base_seed"], data["seed"] = order.base_seed, order.seed
    if fetches_ahead(loader):
        # 4.34.0 has the next batch in its hands when it saves, so what fetching draws is drawn a batch ahead.
        data["ahead"], data["pending"] = list(randomness.KINDS), randomness.to_json(start)
    return data, note


def _is_drawn(loader: Any) -> bool:
    """Whether the order is drawn from the global generator, at least in part."""
    if kind_of(loader) != MAP or generators_of(loader):
        return False
    return not isinstance(_sampler(loader), (SequentialSampler, SeededRandomSampler))


def _sampler(loader: Any) -> Any:
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def _as_begun(run: Run, epoch: int, evaluations: Counter[int], saved: RandomState | None) -> bool:
    """Moves the generators to where they stood when the epoch began, if what was saved proves it. A collective."""
    start = before = randomness.capture()
    for number in range(epoch + 1):
        start = randomness.capture()
        map_order(run.train_dataloader, run.processes, run.processes.world_size)
        for _ in range(evaluations[number]):
            draw()  # the base seed of its loader
    known = (
        saved is not None
        and saved.torch_cpu is not None
        and torch.equal(torch.get_rng_state(), saved.torch_cpu)
    )
    proven = bool(broadcast(known, run.processes))
    randomness.restore(start if proven else before)
    return proven


def _pass_over(run: Run) -> None:
    """Draws what 4.34.0 draws for an epoch that is over."""
    loader = run.train_dataloader
    if kind_of(loader) != MAP:
        draw()
        return
    sampler = _sampler(loader)
    if not isinstance(sampler, RandomSampler):
        map_order(loader, run.processes, 1)
    elif sampler.generator is None and not sampler.replacement:
        draw()
    else:
        for _ in sampler:
            pass


def _other_order(epoch: int, world: int, args: Any) -> str | None:
    """What is to be said where the order of the epoch under way is one that 4.34.0 did not have."""
    if args.data_seed is not None:
        why = "data_seed is heeded"
    elif args.group_by_length and world > 1:
        why = "several processes group rows by length in another way"
    else:
        return None
    return (
        f"The order of epoch {epoch} is another here than the one that transformers began, since {why}: of its rest "
        "some rows are seen twice and some not."
    )
