"""A bare model's tensors by name, while FairScale's FSDP has cut the parameters into flat parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from drivetrain.checkpoint import check_names, check_shape
from drivetrain.errors import ConfigurationError
from drivetrain.slots import Model

_EXTRA = "_extra_state"


class Parts:
    """What each name of the model's state_dict is, noted before the model is wrapped.

    A parameter is cut into as many flat runs of one length as there are ranks, the last ones padded with zeros.

    Args:
        model: the bare model, not wrapped yet.
        device: what the process group communicates from.

    Raises:
        ConfigurationError: an entry of the state_dict is no parameter, no buffer and no extra state.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.named = list(model.named_parameters())
        self.shapes = {id(parameter): parameter.shape for _, parameter in self.named}
        modules = dict(model.named_modules(remove_duplicate=False))
        self.entries: dict[str, Tensor | Callable[[], Any]] = {}
        self._set: dict[str, Callable[[Any], None]] = {}
        for name, value in model.state_dict(keep_vars=True).items():
            path, _, last = name.rpartition(".")
            module = modules.get(path)
            if isinstance(value, torch.nn.Parameter) and id(value) in self.shapes:
                self.entries[name] = value
            elif module is not None and last in module._buffers:
                self.entries[name] = lambda module=module, last=last: module._buffers[last]  # type: ignore[misc]
            elif module is not None and last == _EXTRA:
                self.entries[name] = module.get_extra_state
                self._set[name] = module.set_extra_state
            else:
                raise ConfigurationError(
                    f"Strategy 'fairscale' cannot save {name!r} of the model's state_dict, which is no parameter and "
                    "no buffer, under zero_dp_2 and zero_dp_3: use sharded_ddp='simple'."
                )

    def length(self, parameter: Tensor) -> int:
        """Elements a rank keeps of a parameter, padding included."""
        return -(-self.shapes[id(parameter)].numel() // self.size)

    def here(self, parameter: Tensor) -> Tensor:
        """This rank's part of a parameter. What is not trained stays whole for a while after a backward pass."""
        part: Tensor = getattr(parameter, "_fp32_shard", parameter.data)
        return part

    def is_part(self, tensor: Tensor, parameter: Tensor) -> bool:
        """Whether a tensor has the form of a parameter's part."""
        return tensor.shape == (self.length(parameter),)

    def cut(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of a tensor of the parameter's shape: a copy."""
        length = self.length(parameter)
        part = whole.reshape(-1)[self.rank * length : (self.rank + 1) * length].clone()
        return F.pad(part, [0, length - part.numel()])

    def join(self, part: Tensor, parameter: Tensor) -> Tensor:
        """The whole from every rank's part, on the device of communication. A collective."""
        part = part.detach().to(self.device).contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        shape = self.shapes[id(parameter)]
        return torch.cat(parts)[: shape.numel()].reshape(shape)

    def weights(self, keep: bool) -> dict[str, Any]:
        """The bare model's state_dict, whole, on the host of the ranks that keep it; else empty. A collective."""
        found: dict[str, Any] = {}
        joined: dict[int, Any] = {}
        for name, entry in self.entries.items():
            if isinstance(entry, Tensor):
                if id(entry) not in joined:  # a tied parameter once
                    whole = self.join(self.here(entry), entry)
                    joined[id(entry)] = whole.to("cpu") if keep else None
                value = joined[id(entry)]
            else:
                value = entry()
                value = value.detach().to("cpu") if isinstance(value, Tensor) else value
            if keep:
                found[name] = value
        return found

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Takes this rank's part of each weight; of tied names one is enough.

        Raises:
            CheckpointError: a name or a shape does not fit.
        """
        present = {id(entry) for name, entry in self.entries.items() if name in weights}
        missing = [
            name
            for name, entry in self.entries.items()
            if name not in weights and (not isinstance(entry, Tensor) or id(entry) not in present)
        ]
        check_names("model", missing, sorted(weights.keys() - self.entries.keys()))
        for name, entry in self.entries.items():
            if name not in weights:
                continue
            value = weights[name]
            if name in self._set:
                self._set[name](value)
                continue
            shape = self.shapes[id(entry)] if isinstance(entry, Tensor) else entry().shape
            check_shape(name, value, shape, "model")
            if isinstance(entry, Tensor):
                self.here(entry).copy_(self.cut(value, entry))
            else:
                entry().copy_(value)
