"""Numbers for a model that was built without any: into shards that stand already, a tensor at a time.

They come from safetensors files, of which each rank reads its own part; else from playing back how the model was
built; else, for a model given on the meta device, from its modules' own `reset_parameters`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from drivetrain.checkpoint.weights import weight_files
from drivetrain.errors import ConfigurationError
from drivetrain_plugins.strategy.fsdp.deferred import Place, Recording, view
from drivetrain_plugins.strategy.fsdp.engine import Engine
from drivetrain_plugins.strategy.fsdp.host_memory import give_back_at_once
from drivetrain_plugins.strategy.fsdp.shards import Piece, part, slice_of


def is_empty(model: nn.Module) -> bool:
    """Whether the model, or a part of it, holds no numbers yet."""
    tensors = (*model.parameters(), *model.buffers())
    return any(isinstance(tensor, FakeTensor) or tensor.device.type == "meta" for tensor in tensors)


class Loading:
    """What an empty model needs, noted before it is sharded, and given to it after.

    Args:
        model: the bare model. Its fakes become tensors on the meta device, parameters that are one stay one.
        recording: how it was built; None for a model given on the meta device.
        weights: a safetensors file, or a folder of them.

    Raises:
        ConfigurationError: only some ranks' models are empty.
    """

    def __init__(self, model: nn.Module, recording: Recording | None, weights: str | None) -> None:
        self.recording, self.weights = recording, weights
        self.of_parameter: dict[int, Place] = {}
        # Buffers, and tensors that are plain attributes.
        self.of_other: list[tuple[nn.Module, dict[str, Any], str, Place]] = []
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for attribute, parameter in module._parameters.items():
                if not isinstance(parameter, FakeTensor):
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = new = _on_meta(parameter)
                    if recording is not None:
                        self.of_parameter[id(new)] = recording.place(parameter)
                module._parameters[attribute] = made[id(parameter)]
            for holder in (module._buffers, vars(module)):
                for attribute, tensor in holder.items():
                    if isinstance(tensor, FakeTensor) and recording is not None:
                        self.of_other.append((module, holder, attribute, recording.place(tensor)))
            for attribute, buffer in module._buffers.items():
                if isinstance(buffer, FakeTensor):
                    module._buffers[attribute] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
        self.was_empty = is_empty(model)
        self.buffers = {  # without numbers
            (id(module), attribute)
            for module in model.modules()
            for attribute, buffer in module._buffers.items()
            if buffer is not None and buffer.device.type == "meta"
        }
        self.empty = {id(p) for p in model.parameters() if p.device.type == "meta"}

    @torch.no_grad()
    def fill(self, engine: Engine, device: torch.device) -> None:
        """Gives every rank its part of every number.

        Raises:
            ConfigurationError: nothing says what a tensor is to hold.
        """
        if device.type == "cpu":
            give_back_at_once()
        bare = engine.bare
        left = {name for name, known in self.names.items() if known in self.empty}
        if self.weights is not None:
            names, buffers = read_files(engine, self.weights, device)
            left -= names
            self.buffers -= buffers
        if left or self.recording is not None:
            state = [torch.get_rng_state()]
            dist.broadcast_object_list(state, 0)
            torch.set_rng_state(state[0])
        if self.recording is not None:
            left -= self._play(engine, left, device)
        for module, own in bare.layout:
            lacking = {
                attribute: name for attribute, name in own.items() if name is not None and name in left
            }
            empty = {attribute for attribute in module._buffers if (id(module), attribute) in self.buffers}
            if lacking or empty:
                left -= _by_itself(engine, module, lacking, empty, device)
        if left:
            raise ConfigurationError(
                f"Nothing gives numbers to {sorted(left)[0]!r} of the {bare.kind} on the meta device: "
                "name weights in plugins={'fsdp': {'weights': FOLDER}}, or build it in model_init."
            )

    def take_back(self, engine: Engine) -> None:
        """Makes the model what it was before it was sharded: empty. For when there are no numbers for it."""
        shapes = {name: piece.shape for name, piece in engine.pieces.items()}
        parameters = engine.bare.parameters
        for name, known in self.names.items():
            if known in self.empty:
                old = parameters[name]
                parameters[name] = nn.Parameter(
                    torch.empty(shapes[name], dtype=old.dtype, device="meta"), requires_grad=old.requires_grad
                )
        engine.unwrap()
        for module in engine.bare.model.modules():
            for attribute, buffer in module._buffers.items():
                if buffer is not None and (id(module), attribute) in self.buffers:
                    module._buffers[attribute] = torch.empty_like(buffer, device="meta")

    def note_names(self, model: nn.Module) -> None:
        """Remembers the parameters' names; called when they are the ones that will be sharded."""
        self.names = {name: id(parameter) for name, parameter in model.named_parameters()}

    def _play(self, engine: Engine, left: set[str], device: torch.device) -> set[str]:
        """Plays back how the model was built; returns the names that it gave numbers to."""
        assert self.recording is not None
        takers: dict[int, list[Callable[[Tensor], None]]] = {}
        given: set[str] = set()
        for name, known in self.names.items():
            place = self.of_parameter.get(known)
            if place is None or name not in left:
                continue
            given.add(name)

            def take(flat: Tensor, piece: Piece = engine.pieces[name], place: Place = place) -> None:
                part(piece, piece.holder).copy_(slice_of(piece, view(flat, place)))

            takers.setdefault(place.storage, []).append(take)
        for module, holder, attribute, place in self.of_other:
            if holder is module._buffers:
                if (id(module), attribute) not in self.buffers:
                    continue  # a file had it
                self.buffers.discard((id(module), attribute))

            def put(
                flat: Tensor, holder: Any = holder, attribute: str = attribute, place: Place = place
            ) -> None:
                holder[attribute] = view(flat, place).clone().to(device)

            takers.setdefault(place.storage, []).append(put)

        def all_of(storage: int) -> Callable[[Tensor], None]:
            def give(flat: Tensor) -> None:
                for take in takers[storage]:
                    take(flat)

            return give

        self.recording.play({storage: all_of(storage) for storage in takers})
        return given


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    made = nn.Parameter(
        torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"),
        requires_grad=parameter.requires_grad,
    )
    plain = {"fake_mode", "fake_device", "constant", "real_tensor", "_is_param", "pytype", "dispatch_keys"}
    for key, value in vars(parameter).items():
        if key not in plain and not key.startswith("_nonzero") and not key.endswith("_memo"):
            setattr(made, key, value)
    return made


def read_files(engine: Engine, path: str, device: torch.device) -> tuple[set[str], set[tuple[int, str]]]:
    """Reads weights into the shards, each rank its own rows alone.

    Args:
        engine: of the sharded model.
        path: a safetensors file, or a folder with `model.safetensors` or its shards.
        device: of buffers.

    Returns:
        The parameters that were there, and the buffers: module's id and attribute.

    Raises:
        ConfigurationError: the files hold something else than this model's weights.
    """
    bare = engine.bare
    found: set[str] = set()
    buffers: set[tuple[int, str]] = set()
    files = weight_files(path) if os.path.isdir(path) else [path]
    for file in files:
        if not file.endswith(".safetensors"):
            raise ConfigurationError(
                f"weights={path!r} of the strategy 'fsdp' must be safetensors: convert {file!r}."
            )
        try:
            opened = safetensors.safe_open(file, framework="pt", device="cpu")
        except Exception as error:
            raise ConfigurationError(
                f"weights={path!r} of the strategy 'fsdp' cannot be read: {' '.join(str(error).split())}."
            ) from error
        with opened as content:
            for key in content.keys():  # noqa: SIM118  (not a dict)
                source = bare.keys.get(key)
                stored = content.get_slice(key)
                shape = torch.Size(stored.get_shape())
                if isinstance(source, str):
                    piece = engine.pieces[source]
                    _check(key, shape, piece.shape, path)
                    _read_part(piece, stored)
                    found.add(source)
                elif isinstance(source, tuple):
                    module, attribute = source
                    buffer = module._buffers[attribute]
                    assert buffer is not None
                    _check(key, shape, buffer.shape, path)
                    buffers.add((id(module), attribute))
                    module._buffers[attribute] = content.get_tensor(key).to(device, buffer.dtype)
                else:
                    raise ConfigurationError(
                        f"weights={path!r} of the strategy 'fsdp' has {key!r}, which this "
                        f"{bare.kind} lacks: name the weights of this very model."
                    )
    return found, buffers


def _check(key: str, found: torch.Size, wanted: torch.Size, path: str) -> None:
    if found != wanted:
        raise ConfigurationError(
            f"weights={path!r} of the strategy 'fsdp' has {key!r} of shape {tuple(found)}, and the model's is "
            f"{tuple(wanted)}: name the weights of this very model."
        )


def _read_part(piece: Piece, stored: Any) -> None:
    """Reads the rows that hold this rank's elements."""
    begin, end = piece.span
    if begin == end:
        return
    target = part(piece, piece.holder)
    if not piece.shape:
        target.copy_(stored[...].reshape(-1))
        return
    width = max(piece.shape[1:].numel(), 1)
    first, last = begin // width, -(-end // width)
    rows = stored[first:last].reshape(-1)
    target.copy_(rows[begin - first * width : end - first * width])


def _by_itself(
    engine: Engine, module: nn.Module, names: Mapping[str, str], buffers: set[str], device: torch.device
) -> set[str]:
    """Lets a module fill its own tensors, in a stand-in of it that holds them whole.

    Args:
        engine: of the sharded model.
        module: with parameters or buffers that have no numbers.
        names: of those parameters, by attribute.
        buffers: attributes of those buffers.
        device: of the buffers.

    Returns:
        The names of the parameters that it gave numbers to.

    Raises:
        ConfigurationError: it leaves a buffer as it was.
    """
    stand_in: Any = object.__new__(_own_class(module))
    stand_in.__dict__.update(module.__dict__)
    parameters = engine.bare.parameters
    for attribute in names:
        stand_in.__dict__.pop(attribute, None)
    stand_in.__dict__["_parameters"] = whole = {
        attribute: nn.Parameter(_unset(engine.pieces[name].shape, parameters[name].dtype))
        for attribute, name in names.items()
    }
    stand_in.__dict__["_buffers"] = made = {
        attribute: _unset(b.shape, b.dtype) if attribute in buffers and b is not None else b
        for attribute, b in module._buffers.items()
    }
    initialise = getattr(engine.bare.model, "_init_weights", None)
    if callable(getattr(stand_in, "reset_parameters", None)):
        stand_in.reset_parameters()
    elif callable(initialise):
        initialise(stand_in)
    for attribute in buffers:
        buffer = made[attribute]
        assert buffer is not None
        if _is_unset(buffer):
            raise ConfigurationError(
                f"Nothing gives numbers to the buffer {attribute!r} of a {type(stand_in).__name__} on the meta device: "
                "build the model in model_init, with cpu_ram_efficient_loading in fsdp_config."
            )
        module._buffers[attribute] = buffer.to(device)
    given: set[str] = set()
    for attribute, name in names.items():
        if not _is_unset(whole[attribute]):
            piece = engine.pieces[name]
            part(piece, piece.holder).copy_(slice_of(piece, whole[attribute]))
            given.add(name)
    return given


def _unset(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor whose content says that nobody has set it."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype)


def _is_unset(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return False
    return bool((tensor.isnan() if tensor.is_floating_point() else tensor == 77).any())


def _own_class(module: nn.Module) -> type:
    from torch.distributed.fsdp import FSDPModule

    kind = type(module)
    return kind.__mro__[getattr(kind, "_orig_cls_mro_index", 2)] if isinstance(module, FSDPModule) else kind
