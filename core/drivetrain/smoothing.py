"""Label smoothing (Szegedy et al., "Rethinking the Inception Architecture", 2016), and what to shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Models of transformers that predict the next token, whose names do not say so by their ending.
_CAUSAL = frozenset(
    {"BertGenerationDecoder", "BertLMHeadModel", "QDQBertLMHeadModel", "ReformerModelWithLMHead"}
    | {
        "CTRLLMHeadModel",
        "GPT2LMHeadModel",
        "OpenAIGPTLMHeadModel",
        "TransfoXLLMHeadModel",
        "XLNetLMHeadModel",
    }
    | {"XLMWithLMHeadModel"}
)


@dataclass(frozen=True)
class LabelSmoother:
    """Cross entropy against targets of which a share is spread evenly over all classes.

    loss = (1 - e) · mean(-log p[label]) + e · mean(-log p), the first mean over the labels that count, the
    second over them and over the classes.

    Attributes:
        epsilon: the share e.
        ignore_index: a label that does not count.
    """

    epsilon: float = 0.1
    ignore_index: int = -100

    def __call__(self, outputs: Any, labels: Tensor, shift_labels: bool = False) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: what the model gave: `logits` in a mapping, else the first of a sequence, or a tensor;
                of the shape (..., classes).
            labels: classes, of the shape (...) or (..., 1).
            shift_labels: whether position t predicts label t + 1, along the last dimension of `labels`.
        """
        logits = _logits(outputs)
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        negative = -torch.nn.functional.log_softmax(logits, dim=-1)
        if labels.dim() == negative.dim() - 1:
            labels = labels.unsqueeze(-1)
        ignored = labels.eq(self.ignore_index)
        # Ignored labels have to name some class to be looked up; what is found there is masked out.
        at_label = negative.gather(dim=-1, index=labels.clamp(min=0)).masked_fill(ignored, 0.0)
        over_classes = negative.sum(dim=-1, keepdim=True, dtype=torch.float32).masked_fill(ignored, 0.0)
        count = ignored.numel() - ignored.sum()
        hard = at_label.sum() / count
        soft = over_classes.sum() / (count * negative.shape[-1])
        return (1.0 - self.epsilon) * hard + self.epsilon * soft


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    found: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return found


def predicts_next_token(model: Any) -> bool:
    """Whether the labels are the inputs, to be shifted by one: for a causal language model of transformers.

    Told by the name of its class, or of one it inherits from: a subclass of GPT2LMHeadModel is one too
    (transformers 4.34.0 looks at the last name alone, and computes a wrong loss for subclasses). A wrapper
    is looked through by its `module`, `_orig_mod` or `base_model`.
    """
    seen: set[int] = set()
    while model is not None and id(model) not in seen:
        seen.add(id(model))
        for cls in type(model).__mro__:
            library = cls.__module__.partition(".")[0] == "transformers"
            if cls.__name__ in _CAUSAL or (library and cls.__name__.endswith(("ForCausalLM", "LMHeadModel"))):
                return True
        members = getattr(model, "_modules", {})
        # Looked up among submodules and not by attribute: `base_model` of transformers is a property.
        model = next(
            (members[name] for name in ("module", "_orig_mod", "base_model") if name in members), None
        )
    return False
