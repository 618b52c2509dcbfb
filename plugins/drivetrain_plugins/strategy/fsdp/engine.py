"""What the strategy asks of each generation of FSDP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drivetrain_plugins.strategy.fsdp.options import FSDPOptions, Settings
from drivetrain_plugins.strategy.fsdp.shards import Piece

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(slots=True)
class Plan:
    """What is wrapped, and how.

    Attributes:
        settings, options: as the user set them.
        units: the modules that are units of their own, by name.
        mesh: of all ranks: one dimension, or replicas times shards.
        device: of this rank.
    """

    settings: Settings
    options: FSDPOptions
    units: dict[str, nn.Module]
    mesh: DeviceMesh
    device: torch.device

    @property
    def shard_group(self) -> dist.ProcessGroup:
        """The ranks that share one copy of the model."""
        return self.mesh.get_group(self.mesh.ndim - 1)


@dataclass(slots=True, eq=False)
class Bare:
    """The model before it was wrapped.

    Attributes:
        model: the bare model.
        parameters: its own parameter objects by name, of tied ones the first name.
        places: for each of them every module and attribute that it stands at.
        layout: every module with the names of its own parameters, None where there is none.
        keys: what its state_dict holds, in its order: key -> parameter's name, buffer's place, or module.
        kind: its class's name.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    places: dict[str, list[tuple[nn.Module, str]]]
    layout: list[tuple[nn.Module, dict[str, str | None]]] = field(default_factory=list)
    keys: dict[str, str | tuple[nn.Module, str] | nn.Module] = field(default_factory=dict)
    kind: str = ""

    @classmethod
    def of(cls, model: nn.Module) -> Bare:
        """Notes down how a model is, before it is wrapped."""
        parameters = dict(model.named_parameters())
        names = {id(parameter): name for name, parameter in parameters.items()}
        bare = cls(model, parameters, {name: [] for name in parameters}, kind=type(model).__name__)
        for module in model.modules():
            own = {
                attribute: None if parameter is None else names[id(parameter)]
                for attribute, parameter in module._parameters.items()
            }
            bare.layout.append((module, own))
            for attribute, name in own.items():
                if name is not None:
                    bare.places[name].append((module, attribute))
        bare.keys = dict(bare._find_keys(names))
        return bare

    def _find_keys(
        self, names: Mapping[int, str]
    ) -> Iterator[tuple[str, str | tuple[nn.Module, str] | nn.Module]]:
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            dot = f"{prefix}." if prefix else ""
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    yield dot + attribute, names[id(parameter)]
            for attribute, buffer in module._buffers.items():
                if buffer is not None and attribute not in module._non_persistent_buffers_set:
                    yield dot + attribute, (module, attribute)
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                yield f"{dot}_extra_state", module

    def scalars(self, device: torch.device) -> list[nn.Parameter]:
        """The parameters without a dimension, which nothing can split, on the device."""
        found = []
        for name, parameter in list(self.parameters.items()):
            if parameter.dim() == 0:
                if parameter.device.type == "meta":
                    parameter = self.materialise(name, device)
                parameter.data = parameter.data.to(device)
                found.append(parameter)
        return found

    def materialise(self, name: str, device: torch.device) -> nn.Parameter:
        """Puts a parameter with memory in the place of one on the meta device."""
        old = self.parameters[name]
        new = nn.Parameter(
            torch.zeros(old.shape, dtype=old.dtype, device=device), requires_grad=old.requires_grad
        )
        new.__dict__.update(vars(old))
        self.parameters[name] = new
        for module, attribute in self.places[name]:
            module._parameters[attribute] = new
        return new

    def restore(self) -> None:
        """Puts the model's own parameters back where they were, in their order."""
        for module, own in self.layout:
            for attribute in own:
                vars(module).pop(attribute, None)
            module._parameters.clear()
            for attribute, name in own.items():
                module._parameters[attribute] = None if name is None else self.parameters[name]
            for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
                vars(module).pop(mark, None)
        for parameter in self.parameters.values():
            vars(parameter).pop("_fsdp_flattened", None)  # or the next wrapper would pass it over

    def empty(self, name: str) -> None:
        """Lets go of a parameter's memory; the object stays, for the time after the run."""
        parameter = self.parameters[name]
        parameter.grad = None
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


class Engine(Protocol):
    """One generation of FSDP around one model."""

    bare: Bare
    plan: Plan
    pieces: dict[str, Piece]
    wrapped: nn.Module

    def wrap(self, bare: Bare, plan: Plan) -> None:
        """Shards the model; `wrapped` is what is called. A collective."""

    def synchronise(self, last: bool) -> AbstractContextManager[Any]:
        """The context of a micro-batch; gradients are reduced at the last."""

    def pending(self, piece: Piece) -> Tensor | None:
        """This rank's own gradient of micro-batches that were not reduced yet, whole; None where there is none."""

    def reduced(self, piece: Piece) -> Tensor | None:
        """This rank's elements, flat, of the gradient that was reduced already; None where there is none."""

    def drop_gradients(self) -> None:
        """Drops what is kept of gradients besides those of the holders, which the strategy has dropped."""

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Sets the reduced gradients, of whole tensors by name; the next backward passes add to them."""

    def rest(self) -> None:
        """Every unit's weights in their sharded form."""

    def unwrap(self) -> None:
        """Undoes the wrapping; the parameters' objects are the model's own again, and empty."""
