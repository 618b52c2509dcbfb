"""Which plugins a run uses: one for each slot, in a stated order, every problem found before anything heavy loads."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import pluggy

from drivetrain import discover
from drivetrain.arguments.enums import DOCUMENTED
from drivetrain.binding import Events, new_manager, trace
from drivetrain.errors import ConfigurationError, PluginError, did_you_mean
from drivetrain.options import checked
from drivetrain.plugin import AT_MOST_ONE, SLOTS, Claim, Kind, Place, PluginInfo, Weight, import_string
from drivetrain.reporting import all_loggers
from drivetrain.requirements import missing, needs
from drivetrain.settings import not_enabled

if TYPE_CHECKING:
    from drivetrain.timing import Timing

logger = logging.getLogger("drivetrain")

# The arguments that name a slot's plugin outright. "auto" leaves it to the plugins' claims.
NAMING: dict[str, str] = {
    "strategy": "strategy",
    "precision": "precision",
    "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
}


# Arguments that say which plugins there are; they are read here, whatever comes of them.
CHOOSING = {*NAMING.values(), "report_to", "plugins"}


@dataclass(slots=True)
class Active:
    """A plugin that takes part in the run.

    Attributes:
        kind, name: which plugin.
        reason: why it is active, in words the user wrote.
        info: what it says about itself; None for an object handed in by the user.
        options: an instance of its options' dataclass, or None.
        plugin: the object whose hooks are registered; made when every check has passed.
        version: of its distribution.
        weight: how strongly it claimed its slot.
    """

    kind: Kind
    name: str
    reason: str
    info: PluginInfo | None = None
    options: Any = None
    plugin: Any = None
    version: str = ""
    weight: Weight = Weight.ARGUMENT

    @property
    def key(self) -> str:
        """`kind:name`, the name it is registered under."""
        return f"{self.kind}:{self.name}"

    @property
    def restarts(self) -> bool:
        """Of a strategy: see `PluginInfo.restarts`; an object handed in says so itself."""
        return self.info.restarts if self.info is not None else bool(getattr(self.plugin, "restarts", False))


@dataclass(slots=True)
class Plan:
    """The plugins of a run.

    Attributes:
        active: every active plugin, slots first, transforms and listeners in their order.
        reporting: the line that says which loggers `report_to="all"` means; empty where it is not asked for.
        inert: one sentence for each argument that is set and, by its documentation, does nothing here.
        manager: pluggy's manager with every active plugin registered.
        events: the events, bound.
    """

    active: list[Active] = field(default_factory=list)
    reporting: str = ""
    inert: list[str] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=new_manager)
    events: Events = None  # type: ignore[assignment]  # bound by activate()

    def of_kind(self, kind: str) -> list[Active]:
        """The active plugins of a kind, in their order."""
        return [found for found in self.active if found.kind == kind]

    def slot(self, kind: str) -> Active | None:
        """The active plugin of a slot."""
        found = self.of_kind(kind)
        return found[0] if found else None

    def options(self, kind: str, name: str) -> Any:
        """The options of an active plugin."""
        for found in self.active:
            if (found.kind, found.name) == (kind, name):
                return found.options
        raise KeyError(f"{kind}:{name} is not active")

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Kind, name, version and reason of each active plugin."""
        return [(found.kind, found.name, found.version, found.reason) for found in self.active]


class Resolver:
    """Collects claims and problems for one run. Use `resolve`."""

    def __init__(self, args: Any, instances: Sequence[Any], settings: Any, made: Mapping[str, Any]) -> None:
        self.args = args
        self.made = made
        self.problems: list[str] = []
        self.plan = Plan()
        self.instances = list(instances)
        self.wanted_options: dict[str, Any] = dict(getattr(settings, "options", {}) or {})
        given = getattr(args, "plugins", None)
        # A project's options of a plugin that it has disabled stay in its file: only a run's own ones ask for it.
        self.asked_for = list(given) if isinstance(given, Mapping) else []
        if isinstance(given, Mapping):
            self.wanted_options.update(given)
        elif given is not None:
            self.instances.extend(given)
        # Enabled by the project's file, or by the configuration of this run.
        self.enabled = {name: str(settings.path) for name in getattr(settings, "enabled", ())}
        self.enabled.update(dict.fromkeys(self.wanted_options.pop("enable", ()), "plugins['enable']"))
        self.used_options: set[str] = set()
        self.broken: dict[str, str] = {}
        self.cause: Exception | None = None

    # -- choosing ------------------------------------------------------------------------------------

    def claims(self, kind: Kind) -> list[Active]:
        """The installed plugins of a kind that claim to be active."""
        found = []
        for name in discover.names(kind):
            try:
                info = discover.load_info(kind, name)
            except (PluginError, ConfigurationError) as error:
                self._leave_out(kind, name, str(error))
                continue
            try:
                claim = info.chosen_by(self.args) if info.chosen_by is not None else None
            except ConfigurationError:
                raise  # the arguments are wrong, and not the plugin
            except Exception as error:
                origin = discover.find(kind, name)
                self._leave_out(
                    kind,
                    name,
                    f"{kind.capitalize()} {name!r} of {origin.distribution} {origin.version} cannot tell whether it "
                    f"is wanted: {type(error).__name__}: {error}",
                )
                continue
            if claim is not None:
                found.append(self._active(info, claim))
        return found

    def _leave_out(self, kind: Kind, name: str, why: str) -> None:
        """Installed is not active: a broken plugin ends the run only where an argument turns out to be its own."""
        if f"{kind}:{name}" not in self.broken:
            self.broken[f"{kind}:{name}"] = why
            logger.warning("%s It was not asked for, so the run goes on without it.", why)

    def slot(self, kind: Kind, required: bool) -> None:
        """Chooses the plugin of a slot."""
        argument = NAMING.get(kind)
        wanted = getattr(self.args, argument, "auto") if argument else "auto"
        if isinstance(wanted, type) or (isinstance(wanted, str) and ":" in wanted):
            wanted = "own"
        wanted = str(getattr(wanted, "value", wanted))
        candidates = self._instances_of(kind)
        if wanted == "own":
            candidates.append(Active(kind, "own", f"{argument}={getattr(self.args, str(argument))!r}"))
        elif wanted not in ("auto", "", "None"):
            active = self.by_name(kind, wanted, f"{argument}={wanted!r}")
            if active is None:
                return
            candidates.append(active)
            # A named strategy beside an argument that means another one is a contradiction.
            candidates += [
                claim
                for claim in self.claims(kind)
                if claim.weight == Weight.ARGUMENT and claim.name != wanted
            ]
        else:
            candidates += self.claims(kind)
        if not candidates:
            if required:
                self.problems.append(discover.unknown(kind, wanted, discover.names(kind)))
            return
        heaviest = max(candidate.weight for candidate in candidates)
        best = [candidate for candidate in candidates if candidate.weight == heaviest]
        if argument == "optim" or argument == "lr_scheduler_type":
            # Their arguments always name a plugin, by default if not by the user: an instance comes before.
            best = [candidate for candidate in best if candidate.info is None] or best
        if len(best) > 1:
            first, second = best[0], best[1]
            self.problems.append(
                f"Two plugins claim the slot {kind!r}: {first.name!r} by {first.reason}, and {second.name!r} by "
                f"{second.reason}. Leave one of them out."
            )
            return
        self.plan.active.append(best[0])

    def by_name(self, kind: Kind, name: str, reason: str) -> Active | None:
        """The plugin of that name, or a problem."""
        if name in DOCUMENTED.get(kind, ()) and name not in discover.names(kind):
            self.problems.append(
                f"{reason} is not there yet: it needs the {kind} plugin {name!r}, which is not installed. "
                f"Installed: {', '.join(discover.names(kind)) or 'none'}."
            )
            return None
        try:
            info = discover.load_info(kind, name)
        except (ConfigurationError, PluginError) as error:
            self.problems.append(str(error))
            return None
        return self._active(info, Claim(reason))

    def listeners(self, kind: Kind) -> None:
        """Loggers by `report_to`; transforms and callbacks by their claims, or enabled by name."""
        chosen: dict[str, Active] = {}
        if kind == "logger":
            for active in self._reporting():
                chosen[active.name] = active
        for active in self.claims(kind):
            chosen.setdefault(active.name, active)
        for name, source in self.enabled.items():
            if name not in chosen and name in discover.names(kind):
                found = self.by_name(kind, name, f"enabled in {source}")
                if found is not None:
                    chosen[name] = found
        # Options written for a callback that nothing else chooses mean that it is wanted.
        if kind in ("callback", "transform"):
            for name in self.asked_for:
                if name not in chosen and name in discover.names(kind):
                    found = self.by_name(kind, name, f"plugins={{{name!r}: ...}}")
                    if found is not None:
                        chosen[name] = found
        self.plan.active.extend(self._in_order(kind, list(chosen.values())))
        self.plan.active.extend(self._instances_of(kind))

    def _reporting(self) -> list[Active]:
        report_to = getattr(self.args, "report_to", None)
        wanted = [report_to] if isinstance(report_to, str) else list(report_to or [])
        if wanted in ([], ["none"]):
            return []
        if "all" in wanted:
            infos, self.plan.reporting = all_loggers(self.args)
            return [self._active(info, Claim("report_to='all'", Weight.DEFAULT)) for info in infos]
        return [
            active
            for name in wanted
            if (active := self.by_name("logger", name, f"report_to={name!r}")) is not None
        ]

    def _active(self, info: PluginInfo, claim: Claim) -> Active:
        version = discover.find(info.kind, info.name).version
        return Active(info.kind, info.name, claim.reason, info, version=version, weight=claim.weight)

    def _instances_of(self, kind: Kind) -> list[Active]:
        found: list[Active] = []
        for instance in self.instances:
            if kind_of(instance) == kind:
                place = getattr(instance, "place", "before_wrap")
                if kind == "transform" and place not in get_args(Place):
                    self.problems.append(
                        f"Transform {type(instance).__name__!r} has the place {place!r}; it must be 'before_wrap' or "
                        "'after_prepare'."
                    )
                name = str(getattr(instance, "name", None) or type(instance).__name__)
                taken = {active.name for active in (*self.plan.of_kind(kind), *found)}
                # A second one of a name is name#2, and finds its state again by that.
                free = (name if n == 1 else f"{name}#{n}" for n in itertools.count(1))
                name = next(candidate for candidate in free if candidate not in taken)
                found.append(Active(kind, name, "plugins=[...]", plugin=instance))
        return found

    def _in_order(self, kind: str, chosen: list[Active]) -> list[Active]:
        """Topological order by `before` and `after`; alphabetical where nothing is said."""
        waiting = {active.name: active for active in sorted(chosen, key=lambda found: found.name)}
        earlier: dict[str, set[str]] = {name: set() for name in waiting}
        for name, active in waiting.items():
            if active.info is None:
                continue
            earlier[name] |= set(active.info.after) & waiting.keys()
            for later in set(active.info.before) & waiting.keys():
                earlier[later].add(name)
        for name in waiting:
            for first in sorted(earlier[name]):
                self._check_places(waiting[first], waiting[name])
        ordered: list[Active] = []
        while waiting:
            free = [name for name in waiting if not earlier[name] & waiting.keys()]
            if not free:
                self.problems.append(_circle(kind, earlier, waiting))
                return ordered
            ordered.append(waiting.pop(free[0]))
        return ordered

    def _check_places(self, first: Active, second: Active) -> None:
        """A wish for an order that the places of two transforms make impossible is not passed over."""
        places = [active.info.place if active.info else None for active in (first, second)]
        if places == ["after_prepare", "before_wrap"]:
            self.problems.append(
                f"The transform {first.name!r} is to come before {second.name!r}, which is given the bare model "
                "(before_wrap): give both one place, or leave one of them out."
            )

    # -- checking ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Requirements, options, probes, conflicts, and arguments that nobody would read."""
        for active in self.plan.active:
            if active.info is not None:
                self._check_one(active, active.info)
            elif active.name in self.wanted_options:
                self.used_options.add(active.name)
        keys = {active.key for active in self.plan.active}
        for active in self.plan.active:
            for other, cure in (active.info.conflicts if active.info else {}).items():
                if other in keys:
                    kind, _, name = other.partition(":")
                    self.problems.append(
                        f"{active.kind.capitalize()} {active.name!r} and {kind} {name!r} exclude each other: {cure}"
                    )
        self._check_options()
        self._check_arguments()

    def _check_one(self, active: Active, info: PluginInfo) -> None:
        lacking = missing(info)
        if lacking:
            self.problems.append(f"{info.kind.capitalize()} {info.name!r} {needs(info, lacking)}")
            return
        if not self._make_options(active, info) or info.probe is None:
            return
        try:
            found = info.probe(self.args)
        except Exception as error:
            self.problems.append(
                f"The probe of {info.kind} {info.name!r} failed: {type(error).__name__}: {error}"
            )
            return
        if found:
            self.problems.extend([found] if isinstance(found, str) else found)

    def _make_options(self, active: Active, info: PluginInfo) -> bool:
        given = self.wanted_options.get(info.name)
        if info.name in self.wanted_options:
            self.used_options.add(info.name)
        options = info.options_class()
        if options is None:
            if given:
                self.problems.append(
                    f"{info.kind.capitalize()} {info.name!r} has no options, but got {dict(given)!r}."
                )
                return False
            return True
        known = [found.name for found in dataclasses.fields(options)]
        values = dict(given or {})
        for key in [key for key in values if key not in known]:
            self.problems.append(
                f"{info.kind.capitalize()} {info.name!r} has no option {key!r}.{did_you_mean(key, known)} "
                f"It has: {', '.join(known) or 'none'}."
            )
            return False
        values, wrong = checked(values, options)
        if wrong:
            self.problems += [f"The options of {info.kind} {info.name!r} are wrong: {why}." for why in wrong]
            return False
        try:
            active.options = options(**values)
        except (TypeError, ValueError) as error:
            self.problems.append(f"The options of {info.kind} {info.name!r} are wrong: {error}")
            return False
        return True

    def _check_options(self) -> None:
        installed = {entry.name: entry.kind for entry in reversed(discover.entries())}
        for name, source in self.enabled.items():
            self.problems += not_enabled([name], source)
        for name in self.wanted_options:
            if name in self.used_options:
                continue
            if name in installed:
                self.plan.inert.append(
                    f"plugins[{name!r}] has no effect: the {installed[name]} {name!r} is not active."
                )
            else:
                self.problems.append(discover.unknown("plugin", name, sorted(installed)))

    def _check_arguments(self) -> None:
        """An argument that is set is used, inert, or an error: never ignored in silence."""
        self.plan.inert.extend(self.args.inert())
        changed = changed_arguments(self.args)
        active_keys = {active.key for active in self.plan.active}
        read = {name for active in self.plan.active if active.info for name in active.info.arguments}
        # A class or an instance of the user's does not say what it reads: nothing of its slot is called inert.
        strangers = {active.kind for active in self.plan.active if active.info is None}
        for found in dataclasses.fields(self.args):
            owner = found.metadata.get("owner", "core")
            if found.name not in changed or found.name in read or found.name in CHOOSING:
                continue
            shown = self.args.shown(found.name)  # a token masked
            for part in self.args.owners(found.name):
                kind, _, name = part.partition(":")
                if kind == "core" or kind in strangers:
                    break
                if name and name not in discover.names(kind):
                    self.problems.append(
                        f"{shown} is not there yet: it needs the {kind} plugin {name!r}, which is not installed."
                    )
                    break
                if part in self.broken:
                    self.problems.append(f"{shown} needs the {kind} {name!r}: {self.broken[part]}")
                    break
                if name and part in active_keys:
                    break
            else:
                # What is on by itself and is switched off: that its plugin is not active is the very effect.
                if not (found.default is True and getattr(self.args, found.name) is False):
                    self.plan.inert.append(self._inert(shown, owner))

    def _inert(self, shown: str, owner: str) -> str:
        kind, _, name = owner.partition(":")
        active = self.plan.of_kind(kind)
        if name or not active:
            return (
                f"{shown} has no effect here: the {kind} {name!r} is not active."
                if name
                else (f"{shown} has no effect here: no {kind} is active.")
            )
        return f"{shown} has no effect under the {kind} {', '.join(found.name for found in active)}."

    # -- making --------------------------------------------------------------------------------------

    def activate(self, core: Iterable[tuple[str, Any]], traced: bool, timing: Timing | None) -> Plan:
        """Imports and makes the chosen plugins, and registers them; the core's own listeners come first."""
        for active in self.plan.active:
            if active.plugin is None and active.info is not None:
                active.plugin = self.made.get(active.key) or self._make(active, active.info)
        if self.problems:
            raise ConfigurationError(self.problems) from self.cause
        # pluggy calls the last registered first.
        for active in reversed(self.plan.active):
            if active.plugin is not None and not is_documented_callback(active.plugin):
                self._register(active)
        if self.problems:
            raise ConfigurationError(self.problems)
        for name, plugin in reversed(list(core)):
            self.plan.manager.register(plugin, name=f"core:{name}")
        if traced:
            trace(self.plan.manager)
        self.plan.events = Events(self.plan.manager, traced=traced, timing=timing)
        return self.plan

    def _register(self, active: Active) -> None:
        manager = self.plan.manager
        try:
            manager.register(active.plugin, name=active.key)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            told = " ".join(str(error).split())
            self.problems.append(
                f"{active.kind.capitalize()} {active.name!r} is no plugin of drivetrain: {told}"
            )
        else:
            if not manager.get_hookcallers(active.plugin):
                self.problems.append(
                    f"{active.name!r} ({active.reason}) is no plugin: none of its methods bears @drivetrain.hookimpl."
                )

    def _make(self, active: Active, info: PluginInfo) -> Any:
        try:
            maker: Callable[..., Any] = import_string(info.implementation)
            return maker(active.options) if info.options is not None else maker()
        except Exception as error:
            self.problems.append(
                f"{info.kind.capitalize()} {info.name!r} cannot be loaded: {type(error).__name__}: {error}"
            )
            self.cause = self.cause or error
            return None


def resolve(
    args: Any,
    *,
    instances: Sequence[Any] = (),
    settings: Any = None,
    core: Iterable[tuple[str, Any]] = (),
    kinds: Iterable[str] | None = None,
    made: Mapping[str, Any] | None = None,
    traced: bool = False,
    timing: Timing | None = None,
) -> Plan:
    """Chooses, checks and makes the plugins of a run.

    Args:
        args: the `TrainingArguments`, as they are now.
        instances: plugin objects that the user handed in.
        settings: what `drivetrain.toml` says: `enabled` (names), `options` (name -> dict), `path`.
        core: the core's own listeners, `(name, object)`; they are called before any plugin.
        kinds: choose for these kinds alone, and leave the rest (and the arguments' check) out.
        made: objects made before, by `kind:name`, that are used again.
        traced: print every hook call.
        timing: notes what each plugin's hooks take.

    Raises:
        ConfigurationError: with every problem found.
    """
    if not discover.entries():
        raise ConfigurationError(
            "drivetrain is imported but not installed, so none of its plugins are found. Run: pip install drivetrain"
        )
    resolver = Resolver(args, instances, settings, made or {})
    wanted = set(kinds) if kinds is not None else None
    for kind in (*SLOTS, *AT_MOST_ONE):
        if wanted is None or kind in wanted:
            if kind in ("search", "launcher") and wanted is None:
                continue  # outside the loop: chosen when they are used
            resolver.slot(kind, required=kind in SLOTS)
    for listening in ("transform", "logger", "callback"):
        if wanted is None or listening in wanted:
            resolver.listeners(listening)
    if wanted is None:
        resolver.check()
    else:
        for active in resolver.plan.active:
            if active.info is not None:
                resolver._check_one(active, active.info)
    if resolver.problems:
        raise ConfigurationError(resolver.problems)
    return resolver.activate(core, traced, timing)


def _circle(kind: str, earlier: Mapping[str, set[str]], waiting: Iterable[str]) -> str:
    """The sentence about plugins whose wishes for an order go round in a circle; those behind it are left out."""
    names = list(waiting)
    path = [names[0]]
    while path.count(path[-1]) == 1:
        path.append(min(earlier[path[-1]] & set(names)))
    *first, last = sorted(path[path.index(path[-1]) : -1])
    if not first:
        return f"The {kind} {last!r} asks to come before itself; disable it."
    listed = ", ".join(repr(name) for name in first)
    wish = (
        "each ask to come before the other"
        if len(first) == 1
        else "ask in a circle to come before one another"
    )
    return f"The {kind}s {listed} and {last!r} {wish}; disable one."


def changed_arguments(args: Any) -> set[str]:
    """Names of the arguments that hold neither their default nor what follows from others."""
    return set(args.given())


def kind_of(instance: Any) -> Kind:
    """The kind of a plugin object that was handed in: by the slot hook that it implements."""
    for kind in (*SLOTS, *AT_MOST_ONE):
        if hasattr(instance, f"make_{kind}"):
            return kind
    return "transform" if hasattr(instance, "transform_model") else "callback"


def is_documented_callback(plugin: Any) -> bool:
    """Whether an object is a callback in the documented form, served by the adapter and not by pluggy."""
    return any(base.__name__ == "TrainerCallback" for base in type(plugin).__mro__)


def choose_launcher(args: Any) -> Any:
    """The launcher's object, for the process that asks for its rank first.

    Raises:
        ConfigurationError: none is installed that knows how this process was started.
    """
    plan = resolve(args, kinds=("launcher",))
    found = plan.slot("launcher")
    if found is None:
        raise ConfigurationError(
            "The environment says that this process is one of several, but no launcher plugin knows how they were "
            "started: RANK, WORLD_SIZE and MASTER_ADDR must be set, as torchrun does."
        )
    return plan.manager.hook.make_launcher(args=args)
