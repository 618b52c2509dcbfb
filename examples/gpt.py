"""A small GPT over bytes, on the text of Python's documentation topics. `gpt.toml` trains it, and prints samples."""

from __future__ import annotations

import math
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

BYTES = 256


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer; each normalises its input and adds to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.query_key_value(self.norm_attention(x)).view(rows, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        x = x + self.mix(attended.transpose(1, 2).reshape(rows, length, width))
        x = x + nn.functional.dropout(self.feed(self.norm_feed(x)), self.dropout, self.training)
        return x


class GPT(nn.Module):
    """Predicts every byte from those before it, at most `context` of them."""

    def __init__(self, layers: int, heads: int, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.byte = nn.Embedding(BYTES, width)
        self.place = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:  # what is added to the residual stream starts small in a deep model
            for layer in (block.mix, block.feed[-1]):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Both are (rows, length) of bytes; `labels` are the bytes that come next."""
        x = self.byte(input_ids) + self.place.weight[: input_ids.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    @torch.no_grad()
    def write(self, start: str, length: int, temperature: float = 0.7) -> str:
        """`start` and `length` more bytes, drawn one by one from what the model expects."""
        text = torch.tensor([list(start.encode())])
        device = self.head.weight.device
        for _ in range(length):
            logits = self(text[:, -self.context :].to(device))["logits"][0, -1].float().cpu()
            drawn = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
            text = torch.cat([text, drawn[None]], dim=1)
        return bytes(text[0].tolist()).decode(errors="replace")


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of `context` bytes, one at every `stride`, with the bytes that come next as labels."""

    def __init__(self, text: Tensor, context: int, stride: int) -> None:
        self.text, self.context, self.stride = text, context, stride

    def __len__(self) -> int:
        return (len(self.text) - self.context - 1) // self.stride + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * self.stride
        window = self.text[start : start + self.context + 1]
        return {"input_ids": window[:-1], "labels": window[1:]}


def model(**sizes: Any) -> nn.Module:
    return GPT(**sizes)


def data(context: int, held_out: float) -> dict[str, Any]:
    """The topics one after another; the last share of the text is for evaluation."""
    text = torch.tensor(list("\n\n".join(topics.values()).encode()))
    cut = int(len(text) * (1 - held_out))
    return {
        "train": Windows(text[:cut], context, stride=7),
        "eval": Windows(text[cut:], context, stride=context),
    }


def sample(trainer: Any) -> None:
    """Prints how well the held-out text is predicted, and what the model writes."""
    loss = trainer.evaluate()["eval_loss"]
    print(f"\nheld-out text: {loss / math.log(2):.2f} bits a byte (8 before any training)")
    trainer.model.eval()
    torch.manual_seed(0)
    for start in ("The function ", "If the class "):
        print("\n---", trainer.model.write(start, 300), sep="\n")
