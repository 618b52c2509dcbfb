"""Where drivetrain differs from 4.34.0 on purpose (docs/differences.md): our documented behaviour is what is checked.

These cases run on drivetrain alone and assert. That a resume is exact stands in ``cases_resume.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fixtures import Net, Rows, Stream, accuracy, data, rows
from kit import Kit, case


@case("differs/data-seed", ours="data_seed decides the order of rows, whatever the seed")
def _(k: Kit) -> None:
    orders = []
    for seed in (1, 2):
        train = data(22)
        k.trainer(train=train, seed=seed, data_seed=7, watch=False).train()
        orders.append(train.fetched)
    train = data(22)
    k.trainer(train=train, seed=1, data_seed=8, watch=False).train()
    assert orders[0] == orders[1], "the order of rows depends on the seed"
    assert orders[0] != train.fetched, "the order of rows does not depend on data_seed"
    assert sorted(orders[0][:22]) == list(range(22))
    assert orders[0][:22] != orders[0][22:]


@case("differs/batch-size-restart", ours="a restart by auto_find_batch_size is clean")
def _(k: Kit) -> None:
    class Small(Net):
        def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
            if len(x) > 4 and self.training and len(fails) < 99 and (len(fails) or ran[0] > 1):
                fails.append(len(x))
                raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
            ran[0] += 1
            return super().forward(x, labels)

    fails: list[int] = []
    ran = [0]
    found = k.trainer(
        Small(dropout=0.3), per_device_train_batch_size=16, auto_find_batch_size=True, watch=False
    )
    found.train()
    assert fails == [6, 16, 8] or fails[-1] > 4, fails
    ran[0] = -(10**9)
    plain = k.trainer(Net(dropout=0.3), per_device_train_batch_size=4, watch=False)
    plain.train()
    for (name, a), b in zip(found.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=2e-5, atol=1e-7), (
            f"{name} keeps something of the attempts that failed"
        )
    assert [r["step"] for r in found.state.log_history] == [r["step"] for r in plain.state.log_history]


@case("differs/no-pickle", ours="nothing in a checkpoint is pickled")
def _(k: Kit) -> None:
    trainer = k.trainer(save_steps=4)
    k.train(trainer)
    folder = k.folder / "out" / "checkpoint-4"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "the checkpoint is empty"
    for path in files:
        assert path.suffix in (".json", ".safetensors", ".txt", ".md"), (
            f"{path.name} is neither safetensors nor JSON"
        )
    assert (folder / "model.safetensors").exists()


@case("differs/precision-not-for-the-process", ours="bf16 of one trainer says nothing about the next")
def _(k: Kit) -> None:
    def trained(**arguments: Any) -> Any:
        trainer = k.trainer(num_train_epochs=1, watch=False, **arguments)
        trainer.train()
        return trainer.model.inner.weight.detach().clone()

    before = trained()
    half = trained(bf16=True)
    after = trained()
    assert torch.equal(before, after)
    assert not torch.equal(before, half)


@case("differs/precision-arguments-together", ours="bf16 of one set of arguments says nothing about another")
def _(k: Kit) -> None:
    plain = k.trainer(num_train_epochs=1, watch=False)
    k.args(bf16=True)
    plain.train()
    alone = k.trainer(num_train_epochs=1, watch=False)
    alone.train()
    assert torch.equal(plain.model.inner.weight, alone.model.inner.weight)


@case("differs/evaluation-drop-last", ours="dropping the last batch drops that batch and no rows of another")
def _(k: Kit) -> None:
    trainer = k.trainer(
        eval=data(10, seed=2), dataloader_drop_last=True, compute_metrics=accuracy, watch=False
    )
    output = trainer.predict(data(10, seed=2))
    assert output.predictions.shape == (8, 3), output.predictions.shape


@case("differs/evaluation-of-a-dict", ours="evaluate() takes a dict of data sets, as training does")
def _(k: Kit) -> None:
    trainer = k.trainer(eval={"near": data(10, seed=2), "far": data(7, seed=3)}, watch=False)
    metrics = trainer.evaluate()
    assert {"eval_near_loss", "eval_far_loss"} <= set(metrics), sorted(metrics)


@case("differs/empty-stream", ours="a stream that yields nothing ends the run, with a warning")
def _(k: Kit) -> None:
    output = k.train(k.trainer(train=Stream([]), max_steps=6))
    assert output.global_step == 0


@case(
    "differs/folder-of-another-run",
    ours="checkpoints beyond the latest, left by another run, are the first to go",
)
def _(k: Kit) -> None:
    k.trainer(num_train_epochs=1, save_steps=2, watch=False).train()
    k.trainer(num_train_epochs=1, save_steps=4, save_total_limit=2, watch=False).train()
    assert k.checkpoints() == ["checkpoint-2", "checkpoint-4"], k.checkpoints()


@case(
    "differs/optimizer-with-a-foreign-parameter",
    ours="gradients of all of the optimizer's parameters are cleared",
)
def _(k: Kit) -> None:
    model, spare = Net(), torch.nn.Parameter(torch.ones(3))

    class Own(k.hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            return super().compute_loss(model, inputs) + spare.sum()

    optimizer = torch.optim.SGD([*model.parameters(), spare], lr=0.1)
    args = {
        "optimizers": (optimizer, None),
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
    }
    k.trainer(model, cls=Own, watch=False, **args).train()
    assert torch.allclose(spare, torch.full((3,), 0.7)), spare  # 1 - 3 * 0.1 * 1


@case(
    "differs/evaluation-loader-of-ones-own",
    ours="each row counts once in the loss of an evaluation, whoever made the loader",
)
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return torch.utils.data.DataLoader(self.eval_dataset, batch_size=3, collate_fn=self.data_collator)

    mine = k.trainer(cls=Own, watch=False).evaluate()["eval_loss"]
    usual = k.trainer(watch=False).evaluate()["eval_loss"]
    assert abs(mine - usual) < 2e-5 * usual, (mine, usual)


@case(
    "differs/stream-that-is-told-the-epoch",
    ours="a stream with set_epoch is told the epoch, so its order changes",
)
def _(k: Kit) -> None:
    class Told(Stream):
        epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    train = Told(rows(10))
    k.trainer(train=train, max_steps=7, watch=False).train()
    assert train.epochs == [0, 1, 2], train.epochs


@case("differs/train-again-after-half-an-update", ours="a second train() counts its accumulation from 0")
def _(k: Kit) -> None:
    class Stop(k.hf.TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            control.should_training_stop = state.global_step >= 1

    trainer = k.trainer(gradient_accumulation_steps=3, num_train_epochs=1, watch=False, callbacks=[Stop()])
    trainer.train()
    trainer.remove_callback(Stop)
    before = trainer.model.inner.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.inner.weight), "the optimizer was never stepped"


@case("differs/two-accumulations", ours="two trainers with different accumulation do not disturb each other")
def _(k: Kit) -> None:
    alone = k.trainer(num_train_epochs=1, watch=False)
    alone.train()
    first = k.trainer(num_train_epochs=1, watch=False)
    k.trainer(num_train_epochs=1, gradient_accumulation_steps=4, watch=False)
    first.train()
    assert torch.equal(alone.model.inner.weight, first.model.inner.weight)


@case(
    "differs/full-evaluation-leaves-the-weights",
    ours="evaluating in half precision leaves the weights as they were",
)
def _(k: Kit) -> None:
    class Casting(Net):
        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(x.to(self.inner.weight.dtype))

    trainer = k.trainer(Casting(), bf16_full_eval=True, compute_metrics=accuracy, watch=False)
    before = trainer.model.inner.weight.detach().clone()
    trainer.evaluate()
    assert trainer.model.inner.weight.dtype == torch.float32
    assert torch.equal(before, trainer.model.inner.weight)


@case("differs/resume-without-iterating", ours="a resume does not fetch the rows that were seen")
def _(k: Kit) -> None:
    k.trainer(save_steps=4, num_train_epochs=1, watch=False).train()
    train = Rows(rows(22))
    k.trainer(train=train, num_train_epochs=1, watch=False).train(
        resume_from_checkpoint=str(k.folder / "out" / "checkpoint-4")
    )
    assert len(train.fetched) == 22 - 4 * 4, train.fetched
    assert np.unique(train.fetched).size == len(train.fetched)


@case(
    "differs/half-evaluation-of-float-rows", ours="rows of floats are cast with the model in half evaluation"
)
def _(k: Kit) -> None:
    trainer = k.trainer(bf16_full_eval=True, compute_metrics=accuracy)
    half = trainer.evaluate()["eval_loss"]
    trainer.args.bf16_full_eval = False
    full = trainer.evaluate()["eval_loss"]
    assert half != full, "the model was not cast"
    assert abs(half - full) < 0.02 * full, (half, full)
