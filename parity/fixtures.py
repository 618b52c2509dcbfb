"""Small models and data for the parity cases: the same numbers on every engine, whatever was seeded before.

Everything random here draws from a generator of its own, so building a model or a data set never moves the
global generators whose use by the trainers is what the cases compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

WIDTH, CLASSES = 6, 3
VOCABULARY = 40


def quietly_seeded(seed: int, build: Any) -> Any:
    """Call ``build()`` under torch's seed ``seed`` and put the global generator back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Rows(Dataset):
    """A map-style data set over a list; it can say which rows were fetched, in order."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.fetched.append(int(index))
        return self.rows[index]


class Stream(IterableDataset):
    """Rows one after another, without a length."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class SizedStream(Stream):
    """An iterable data set that knows its length."""

    def __len__(self) -> int:
        return len(self.rows)


def rows(count: int = 22, seed: int = 1, **extra: Any) -> list[dict[str, Any]]:
    """``count`` rows with ``x`` (float32, 6) and ``labels`` (0 to 2); ``extra`` columns are repeated in each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, WIDTH, generator=generator)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return [{"x": x[i], "labels": int(y[i]), **extra} for i in range(count)]


def data(count: int = 22, seed: int = 1, **extra: Any) -> Rows:
    return Rows(rows(count, seed, **extra))


def unlabelled(count: int = 10, seed: int = 3) -> Rows:
    return Rows([{"x": row["x"]} for row in rows(count, seed)])


def text_rows(
    count: int = 18, seed: int = 1, lengths: tuple[int, int] = (5, 5), labels: str = "class"
) -> list[dict[str, Any]]:
    """Rows of token ids. ``labels``: "class", "token" (some of them -100), "causal", "span" or "none"."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        length = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=generator))
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator)
        row: dict[str, Any] = {"input_ids": ids.tolist(), "attention_mask": [1] * length}
        if labels == "class":
            row["labels"] = int(ids.sum() % CLASSES)
        elif labels == "token":
            marks = ids % CLASSES
            marks[torch.rand(length, generator=generator) < 0.3] = -100
            row["labels"] = marks.tolist()
        elif labels == "causal":
            row["labels"] = ids.tolist()
        elif labels == "span":
            row["start_positions"], row["end_positions"] = 1, length - 1
        result.append(row)
    return result


class Net(nn.Module):
    """A classifier with a LayerNorm and biases; returns a dict of ``loss`` (when labelled) and ``logits``."""

    def __init__(
        self, dropout: float = 0.0, seed: int = 11, nan_at: int | None = None, bad: float = float("nan")
    ):
        super().__init__()

        def build() -> None:
            self.inner = nn.Linear(WIDTH, 8)
            self.norm = nn.LayerNorm(8)
            self.outer = nn.Linear(8, CLASSES)

        quietly_seeded(seed, build)
        self.dropout = nn.Dropout(dropout)
        self.nan_at, self.bad, self.calls = nan_at, bad, 0

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.dropout(torch.relu(self.norm(self.inner(x)))))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.logits(x)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits.float(), labels)
        if self.training:
            self.calls += 1
            if self.nan_at is not None and self.calls == self.nan_at:
                loss = loss + self.bad  # the value is spoiled, the gradient is not
        return {"loss": loss, "logits": logits}


class TupleNet(Net):
    """The same, returning a tuple: (loss, logits) with labels, (logits,) without."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return tuple(super().forward(x, labels).values())


class ManyOutputs(Net):
    """Two predictions, one of them not wanted by everybody."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        outputs = super().forward(x, labels)
        return {**outputs, "hidden": self.inner(x), "scale": outputs["logits"].norm(dim=-1)}


class TwoLabels(Net):
    """A model with two label arguments."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, label_weight: Any = None) -> Any:
        logits = self.logits(x)
        if labels is None or label_weight is None:
            return {"logits": logits}
        loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * label_weight).mean()
        return {"loss": loss, "logits": logits}


class Keywords(Net):
    """A model that takes any column, as ``remove_unused_columns=False`` needs."""

    def forward(self, **batch: torch.Tensor) -> Any:  # type: ignore[override]
        return super().forward(batch["x"] * batch["factor"].unsqueeze(-1), batch["labels"])


class Regression(nn.Module):
    """One linear layer and a mean squared error; the label is a float."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = quietly_seeded(5, lambda: nn.Linear(WIDTH, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        prediction = self.linear(x).squeeze(-1)
        if labels is None:
            return (prediction,)
        return nn.functional.mse_loss(prediction, labels.float()), prediction


class Ragged(nn.Module):
    """One number a token: predictions whose second dimension changes from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = quietly_seeded(6, lambda: nn.Embedding(VOCABULARY, CLASSES))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
        logits = self.embedding(input_ids)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
        return {"loss": loss, "logits": logits}


def pad_tokens(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator that pads ids with 0, masks with 0 and labels with -100 to the longest of the batch."""
    longest = max(len(row["input_ids"]) for row in batch)
    padded: dict[str, torch.Tensor] = {}
    for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        if name in batch[0]:
            columns = [list(row[name]) + [fill] * (longest - len(row[name])) for row in batch]
            padded[name] = torch.tensor(columns)
    return padded


def noisy(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator that draws from torch's global generator, as augmentation does."""
    x = torch.stack([row["x"] for row in batch])
    x = x + 0.1 * torch.randn(x.shape)
    return {"x": x, "labels": torch.tensor([row["labels"] for row in batch])}


def accuracy(prediction: Any) -> dict[str, Any]:
    """Accuracy as a numpy number, and the sum of the labels as a plain one."""
    logits, labels = prediction.predictions, prediction.label_ids
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": (logits.argmax(-1) == labels).mean(), "label_sum": float(labels.sum())}


# Small transformers models; both engines train the very same classes.


def bert(kind: str = "BertForSequenceClassification", dropout: float = 0.0) -> Any:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES if kind != "BertForQuestionAnswering" else 2,
    )
    return quietly_seeded(21, lambda: getattr(transformers, kind)(config))


def gpt2(dropout: float = 0.0) -> Any:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return quietly_seeded(22, lambda: transformers.GPT2LMHeadModel(config))


def t5() -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return quietly_seeded(23, lambda: transformers.T5ForConditionalGeneration(config))


def tokenizer() -> Any:
    """A word-level tokenizer, made on the spot, that pads with 0."""
    import tokenizers
    import transformers

    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
