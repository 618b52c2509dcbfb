"""A small task: which of three waves a row is."""

import torch


class Net(torch.nn.Module):
    """A layer, a hidden one, three classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, width), torch.nn.Tanh(), torch.nn.Linear(width, 3)
        )

    def forward(self, x, labels=None):
        """The loss, where there are labels, and the logits."""
        logits = self.layers(x)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def data(rows: int = 403):
    """Rows for training and for evaluation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (rows + 100,), generator=generator)
    time = torch.arange(16) / 16
    phase = torch.rand(rows + 100, 1, generator=generator)
    x = (
        torch.sin(6.28 * (labels[:, None] + 1) * (time + phase))
        + torch.randn(rows + 100, 16, generator=generator) / 2
    )
    made = [{"x": row, "labels": int(label)} for row, label in zip(x, labels, strict=True)]
    return {"train": made[:rows], "eval": made[rows:]}
