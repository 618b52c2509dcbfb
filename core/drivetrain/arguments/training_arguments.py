"""`TrainingArguments`: the topics put together in the documented order, then settled and checked."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, make_dataclass
from enum import Enum
from functools import cache
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, get_type_hints

from drivetrain.arguments import aliases, checks, derive, inert, rules
from drivetrain.arguments.compilation import Compilation
from drivetrain.arguments.data import Data
from drivetrain.arguments.deprecated import Deprecated
from drivetrain.arguments.distributed import Distributed
from drivetrain.arguments.enums import DebugOption, IntervalStrategy
from drivetrain.arguments.evaluation import Evaluation
from drivetrain.arguments.facts import ProcessFacts
from drivetrain.arguments.field import Wrong
from drivetrain.arguments.hub import Hub
from drivetrain.arguments.methods import Self, Setters
from drivetrain.arguments.optimization import Optimization
from drivetrain.arguments.order import ORDER
from drivetrain.arguments.ours import Ours
from drivetrain.arguments.output import Output
from drivetrain.arguments.precision import Precision
from drivetrain.arguments.reporting import Reporting
from drivetrain.arguments.saving import Saving
from drivetrain.arguments.schedule import Schedule
from drivetrain.arguments.search import Search
from drivetrain.errors import ConfigurationError
from drivetrain.secret import is_secret_name, learn, struck

TOPICS: tuple[type, ...] = (
    Output,
    Schedule,
    Optimization,
    Reporting,
    Saving,
    Evaluation,
    Precision,
    Compilation,
    Data,
    Distributed,
    Hub,
    Search,
    Deprecated,
    Ours,
)
_ALL = {field.name: field for topic in TOPICS for field in fields(topic)}
if TYPE_CHECKING:

    class _InOrder: ...

else:
    # A field keeps the position at which the dataclass machinery first meets it, and it meets the last base
    # first. The topics' own fields then take their places in this order.
    _InOrder = make_dataclass(
        "_InOrder",
        [
            (name, _ALL[name].type, _ALL[name])
            for name in (*ORDER, *(name for name in _ALL if name not in ORDER))
        ],
        namespace={"__module__": __name__},
    )


@dataclass(repr=False)
class TrainingArguments(
    Setters,
    ProcessFacts,
    Ours,
    Deprecated,
    Search,
    Hub,
    Distributed,
    Data,
    Compilation,
    Precision,
    Evaluation,
    Saving,
    Reporting,
    Optimization,
    Schedule,
    Output,
    _InOrder,
):
    """Every argument of a run.

    Positions, names and defaults are those documented for transformers 4.34.0; what drivetrain adds is
    keyword-only. Values are settled and checked when the object is made (`settle`), and again when the run
    begins. They stay plain, mutable attributes.

    Raises:
        ConfigurationError: with one sentence for each problem found.
    """

    def __post_init__(self) -> None:
        self._derived: dict[str, Any] = {}
        self._folded: dict[str, Any] = {}
        self.settle()

    def settle(self) -> None:
        """Bring every value into its settled form, fill in what follows from others, and check the whole.

        It may be called again after attributes were set; nothing changes where nothing did.

        Raises:
            ConfigurationError: with every problem found.
        """
        problems: list[str] = []
        wrong: set[str] = set()
        self._settle_values(declared(), problems, wrong)
        first = "_settled" not in self.__dict__
        spelled = {
            name: self.__dict__[name]
            for name in aliases.ALIASES
            if name not in wrong and self._unfolded(name)
        }
        if "output_dir" not in wrong and "fsdp_config" not in wrong and "debug" not in wrong:
            problems += aliases.fold(self, spelled, first)
            self._folded |= spelled
            self.__dict__["eval_strategy"] = None
            self._settle_values(_FOLDED_INTO - wrong, problems, wrong)
        if not wrong:
            derive.derive(self)
        problems += rules.broken(self, wrong)
        learn({name: self.__dict__[name] for name in declared()})
        if problems:
            raise ConfigurationError(problems)
        self._settled = True

    def _settle_values(self, names: Iterable[str], problems: list[str], wrong: set[str]) -> None:
        for name in names:
            hint, declaration = declared()[name]
            try:
                self.__dict__[name] = checks.settle(name, self.__dict__[name], hint, declaration.metadata)
            except Wrong as error:
                problems.append(str(error))
                wrong.add(name)

    def _unfolded(self, name: str) -> bool:
        default = declared()[name][1].default
        return bool(self.__dict__[name] != default and self.__dict__[name] != self._folded.get(name, default))

    def _fill(self, name: str, value: Any) -> None:
        self.__dict__[name] = self._derived[name] = value

    def _assign(self: Self, **values: Any) -> Self:
        problems: list[str] = []
        settled: dict[str, Any] = {}
        for name, value in values.items():
            hint, declaration = declared()[name]
            try:
                settled[name] = checks.settle(name, value, hint, declaration.metadata)
            except Wrong as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError(problems)
        self.__dict__.update(settled)
        return self

    def is_set(self, name: str) -> bool:
        """Whether argument `name` holds neither its default nor what follows from other arguments."""
        value = self.__dict__[name]
        if name in self._derived and self._derived[name] == value:
            return False
        if name in aliases.ALIASES and name in self._folded:
            return False  # the argument that took its place is set instead
        default = declared()[name][1].default
        return bool(default is MISSING or (value != default and value != settled_default(name)))

    def given(self) -> dict[str, Any]:
        """The arguments that are set, with their values."""
        return {name: self.__dict__[name] for name in declared() if self.is_set(name)}

    def inert(self) -> list[str]:
        """One sentence for each of the core's arguments that is set and does nothing under the others."""
        return list(inert.inert(self))

    def owners(self, name: str) -> tuple[str, ...]:
        """Who reads argument `name` as it stands; see `owners_of`."""
        return owners_of(self, name)

    def shown(self, name: str) -> str:
        """`name=value` for a message or a log, a token masked."""
        value = f"<{name.upper()}>" if name.endswith("_token") else _plain(self.__dict__[name], name)
        return f"{name}={value!r}"

    # Two fields are more than their value. The dataclass's own machinery sets and reads them like any other.

    @property  # type: ignore[misc]
    def local_rank(self) -> int:
        """This process's number on its node; with several processes, asking makes the process group."""
        from drivetrain.processes import asked_for, starting

        several = asked_for() > 1 and not starting()
        return self._processes.local_rank if several else int(self.__dict__["local_rank"])

    @local_rank.setter
    def local_rank(self, value: int) -> None:
        self.__dict__["local_rank"] = value

    @property  # type: ignore[misc]
    def eval_strategy(self) -> IntervalStrategy | str | None:
        """The later spelling of `evaluation_strategy`."""
        return self.evaluation_strategy

    @eval_strategy.setter
    def eval_strategy(self, value: IntervalStrategy | str | None) -> None:
        if "_settled" not in self.__dict__:
            self.__dict__["eval_strategy"] = value  # `settle` compares the two spellings
        elif value is not None:
            self.evaluation_strategy = value

    def to_dict(self) -> dict[str, Any]:
        """Every argument as JSON can hold it, but for objects that the user passed.

        Enums are their words, a class is `module:Class`, tokens are masked, and so is what is secret in the options of
        plugins or within a string. Older spellings that were
        carried over to their argument are back at their default, so that the dict makes equal arguments.
        """
        return {field.name: self._plain(field) for field in fields(self) if field.init}

    def _plain(self, field: "Field[Any]") -> Any:
        name = field.name
        value = self.__dict__[name] if name in self.__dict__ else getattr(self, name)
        if name.endswith("_token"):
            return f"<{name.upper()}>"
        if name in self._folded and name in aliases.ALIASES:
            return field.default
        return _plain(value, name)

    def to_json_string(self) -> str:
        """`to_dict` as JSON; what JSON cannot hold is its text."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """`to_dict` with the process's batch sizes, and text for all that is no bool, number or string."""
        sizes = {"train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        plain = self.to_dict() | sizes
        return {
            name: value if type(value) in (bool, int, float, str) else str(value)
            for name, value in plain.items()
        }

    def __str__(self) -> str:
        return "\n".join((f"{type(self).__name__}(", *self._lines(), ")"))

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        for name, value in sorted(self.to_dict().items()):
            yield f"    {name}={value!r},"


_FOLDED_INTO = {*aliases.RENAMED.values(), "optim", "debug", "fsdp_config", "hub_model_id"}


@cache
def declared() -> dict[str, tuple[Any, "Field[Any]"]]:
    """Each argument's resolved annotation and field, in the order of positions, without a subclass's own."""
    hints = get_type_hints(TrainingArguments)
    return {field.name: (hints[field.name], field) for field in fields(TrainingArguments)}


@cache
def settled_default(name: str) -> Any:
    """An argument's default in its settled form; `report_to=None` is kept as `["all"]`, for one."""
    hint, field = declared()[name]
    return checks.settle(name, field.default, hint, field.metadata)


def owners_of(args: TrainingArguments, name: str) -> tuple[str, ...]:
    """Who reads argument `name` as it stands: `core`, a kind of plugin, or `kind:plugin`.

    `debug` has as many owners as words, `debug=""` none.
    """
    if name == "debug":
        named = {
            DebugOption.UNDERFLOW_OVERFLOW: "underflow_overflow",
            DebugOption.TPU_METRICS_DEBUG: "tpu_metrics",
        }
        return tuple(f"callback:{named[DebugOption(word)]}" for word in args.debug)
    owner: str = declared()[name][1].metadata["owner"]
    return tuple(part.strip() for part in owner.split(","))


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(entry, name) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, PathLike):
        return struck(fspath(value))
    if isinstance(value, str):
        return f"<{name.upper()}>" if value and is_secret_name(name) else struck(value)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}:{value.__qualname__}"
    return value
