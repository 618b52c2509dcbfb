"""What a strategy's author is given for tensors of all ranks; run by torchrun with two processes."""

from __future__ import annotations

import torch
import torch.distributed as dist

from drivetrain import average, broadcast, collect, gather

dist.init_process_group("gloo")
rank = dist.get_rank()
cpu = torch.device("cpu")
mine = torch.arange(6.0).reshape(2, 3) + 10 * rank

# A rank may lack a name that another has; it counts as zeros. None is changed.
given = {"both": mine, "strided": mine.T} | ({"second": mine} if rank == 1 else {})
means = average(given, cpu)
assert set(means) == {"both", "strided", "second"}
assert torch.equal(means["both"], torch.arange(6.0).reshape(2, 3) + 5)
assert torch.equal(means["strided"], (torch.arange(6.0).reshape(2, 3) + 5).T)
assert torch.equal(means["second"], (torch.arange(6.0).reshape(2, 3) + 10) / 2)
assert torch.equal(mine, torch.arange(6.0).reshape(2, 3) + 10 * rank)
assert average({}, cpu) == {}

# Rank 0's values for all, whatever the strides; numbers without a dimension, and parameters that want gradients.
parameter = torch.nn.Parameter(torch.full((2, 3, 4, 4), float(rank)).to(memory_format=torch.channels_last))
count = torch.tensor(7 + rank)
broadcast((parameter, mine.T, count))
assert parameter.is_contiguous(memory_format=torch.channels_last)
assert bool((parameter == 0).all())
assert torch.equal(mine, torch.arange(6.0).reshape(2, 3))
assert int(count) == 7

# Each rank's own, on rank 0 alone; of different shapes, nested, and no more than the part of a tensor that was meant.
large = torch.zeros(1_000_000)
ranks = gather({"a": {"x": torch.ones(rank + 1), "n": rank}, "b": [large[:2] + rank, None], "c": rank > 0})
if rank == 0:
    assert [of_rank["a"]["n"] for of_rank in ranks] == [0, 1]
    assert [len(of_rank["a"]["x"]) for of_rank in ranks] == [1, 2]
    assert [of_rank["b"][0].tolist() for of_rank in ranks] == [[0, 0], [1, 1]]
    assert ranks[0]["b"][0].untyped_storage().nbytes() == 8
    assert [of_rank["c"] for of_rank in ranks] == [False, True]
else:
    assert ranks == []

assert collect({"rows": torch.full((2,), rank), "one": (torch.tensor(rank),)})["rows"].tolist() == [
    0,
    0,
    1,
    1,
]
dist.destroy_process_group()
