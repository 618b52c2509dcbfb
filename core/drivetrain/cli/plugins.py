"""`drivetrain plugins`: what is installed, by metadata alone; what it says of itself, when asked."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain import settings
from drivetrain.cli.console import is_terminal, say, table, width
from drivetrain.discover import Entry, entries, load_info
from drivetrain.errors import ConfigurationError, PluginError

if TYPE_CHECKING:
    from drivetrain.plugin import PluginInfo

READY = "ready"


def show_list(probe: bool) -> None:
    """Prints every installed plugin, its kind, origin and state."""
    enabled = settings.enabled_names()
    narrow = width() < 90
    rows = []
    kind = ""
    for entry in entries():
        state = probed(entry) if probe else lacking_line(entry) or READY
        if entry.name in enabled and entry.kind not in settings.CHOSEN_BY:
            state += ", enabled"
        if narrow and entry.distribution != "drivetrain":
            state += f" (from {_origin(entry)})"
        # In a pipe each line is whole, for grep.
        shown = entry.kind if entry.kind != kind or not is_terminal() else ""
        rows.append((shown, entry.name, *(() if narrow else (_origin(entry),)), state))
        kind = entry.kind
    if not rows:
        raise ConfigurationError(
            "No plugin is installed, not even drivetrain's own. Run: pip install drivetrain"
        )
    if narrow:
        table(("kind", "name", "state"), rows, styles=("bold", "cyan"), fixed=(0, 1))
    else:
        table(("kind", "name", "from", "state"), rows, styles=("bold", "cyan", "dim"), fixed=(0, 1, 2))
    settings.load()  # names that are enabled and cannot be are an error, told when all is listed


def lacking_line(entry: Entry) -> str | None:
    """`"not installed: pip install 'drivetrain[wandb]'"` where the extra named like the plugin lacks something.

    Reads the metadata of distributions and imports nothing.
    """
    return (
        f"not installed: pip install '{entry.distribution}[{_extra(entry.name)}]'"
        if any(_lacking(entry.distribution, entry.name))
        else None
    )


def probed(entry: Entry) -> str:
    """The state of a plugin as its own info and probe tell it."""
    from drivetrain.requirements import missing

    try:
        info = load_info(entry.kind, entry.name)
        lacking = missing(info)
    except (PluginError, ConfigurationError) as error:
        return f"broken: {error}"
    if lacking:
        wanted = f"{info.distribution}[{info.extra}]" if info.extra else " ".join(lacking)
        return f"not installed: pip install '{wanted}'"
    reason = _ask(info)
    return f"{reason}" if reason else READY


def _ask(info: PluginInfo) -> str | None:
    """Calls the probe with the arguments under which the plugin would be asked for, as far as we know them."""
    if info.probe is None:
        return None
    try:
        found = info.probe(_sample_arguments(info))
    except Exception as error:  # a stranger's code: whatever it raises, the list goes on
        return f"broken: {type(error).__name__}: {error}"
    if not found:
        return None
    reasons = (found,) if isinstance(found, str) else tuple(found)
    return f"unsupported here: {' '.join(reasons)}" if reasons else None


def _sample_arguments(info: PluginInfo) -> Any:
    from drivetrain.arguments import TrainingArguments

    return TrainingArguments(output_dir="tmp_trainer", report_to=[], hub_strategy="end")


@functools.cache
def _requirements(distribution: str) -> tuple[str, ...]:
    try:
        return tuple(importlib.metadata.requires(distribution) or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def _lacking(distribution: str, extra: str) -> Iterator[str]:
    wanted = _extra(extra)
    for line in _requirements(distribution):
        if "extra" not in line or wanted not in _extra(line):  # most lines, without parsing them
            continue
        from packaging.requirements import Requirement

        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": wanted}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield str(requirement)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield str(requirement)


def _extra(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _origin(entry: Entry) -> str:
    return f"{entry.distribution} {entry.version}"


def select(name: str) -> Entry:
    """The plugin that a user means by NAME or KIND:NAME.

    Raises:
        ConfigurationError: there is none, or several kinds have one of that name.
    """
    kind, _, plain = name.rpartition(":")
    found = [entry for entry in entries() if entry.name == plain and kind in ("", entry.kind)]
    others = [entry.kind for entry in entries() if entry.name == plain]
    if not found and others:
        raise ConfigurationError(f"There is no {kind} '{plain}': it is a {others[0]}, '{others[0]}:{plain}'.")
    if not found:
        raise ConfigurationError(settings.unknown_plugin(plain, (entry.name for entry in entries())))
    if len({entry.kind for entry in found}) > 1:
        ways = " or ".join(f"'{entry.kind}:{entry.name}'" for entry in found)
        raise ConfigurationError(f"Several kinds have a plugin '{plain}'; write {ways}.")
    return found[0]


def show(name: str) -> None:
    """Prints all that a plugin says of itself."""
    entry = select(name)
    state = probed(entry)
    say(f"{entry.name}", style="bold cyan")
    try:
        info = load_info(entry.kind, entry.name)
    except PluginError:
        table(("", ""), [("kind", entry.kind), ("from", _origin(entry)), ("state", state)], header=False)
        return
    say(info.summary)
    rows = [("kind", entry.kind), ("from", _origin(entry)), ("state", state), ("chosen by", _chosen_by(info))]
    if info.requires:
        rows.append(("requires", ", ".join(info.requires)))
    if info.arguments:
        rows.append(("arguments", ", ".join(info.arguments)))
    hooks = hooks_of(info)
    rows.append(("hooks", hooks))
    if info.place:
        rows.append(("place", info.place))
    if info.after:
        rows.append(("comes after", ", ".join(info.after)))
    if info.before:
        rows.append(("comes before", ", ".join(info.before)))
    rows += [("not with", f"{other}: {cure}") for other, cure in info.conflicts.items()]
    rows.append(("code", info.implementation))
    table(("", ""), rows, styles=("dim",), fixed=(0,), header=False)
    options = info.options_class()
    if options is not None and (listed := list(option_rows(options))):
        table(
            ("option", "type", "default", "what it does"),
            listed,
            title=f"[plugins.{entry.name}]",
            styles=("cyan",),
        )


def _chosen_by(info: PluginInfo) -> str:
    from drivetrain.resolve import NAMING

    if info.kind in settings.CHOSEN_BY:
        text = settings.CHOSEN_BY[info.kind].format(name=info.name)
        return text if info.kind in NAMING or info.chosen_by is None else f"{text}, or by its arguments"
    if info.chosen_by is not None:
        return f"its arguments ({', '.join(info.arguments)})" if info.arguments else "its arguments"
    return f"`drivetrain plugins enable {info.name}`, or Trainer(plugins=[...])"


def hooks_of(info: PluginInfo) -> str:
    """Names of the hooks that a plugin implements, in a run's order; imports the plugin."""
    from drivetrain.hookspecs import SPECS
    from drivetrain.plugin import import_string

    try:
        plugin = import_string(info.implementation)
    except Exception as error:  # a stranger's module, or an engine that is not there
        return f"not known: {type(error).__name__}: {error}"
    returned = _returned(plugin)
    known = [name for spec in SPECS for name in vars(spec) if not name.startswith("_")]
    return ", ".join(name for name in known if hasattr(returned, name)) or "none"


def _returned(maker: Any) -> Any:
    """What a maker makes: itself where it is a class, else the class that its annotation names."""
    if isinstance(maker, type):
        return maker
    import typing

    try:
        return typing.get_type_hints(maker).get("return", maker)
    except Exception:  # names that resolve under a type checker only
        return maker


def option_rows(options: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and documentation of each option of a dataclass."""
    documented = dict(_attribute_docs(options))
    for found in dataclasses.fields(options):
        if found.default is not dataclasses.MISSING:
            default = repr(found.default)
        elif found.default_factory is not dataclasses.MISSING:
            default = repr(found.default_factory())
        else:
            default = "required"
        kind = found.type if isinstance(found.type, str) else getattr(found.type, "__name__", str(found.type))
        text = found.metadata.get("help") or documented.get(found.name, "")
        yield found.name, kind, default, text


def _attribute_docs(options: type[Any]) -> Iterator[tuple[str, str]]:
    """The lines `name: text` of the section `Attributes:` of a docstring."""
    import inspect

    lines = inspect.cleandoc(options.__doc__ or "").partition("Attributes:")[2].splitlines()
    name, text = "", ""
    for line in lines:
        stripped = line.strip()
        if not stripped or not line.startswith("    "):
            if stripped:
                break
            continue
        if not line.startswith("     ") and ":" in stripped:
            if name:
                yield name, text
            name, _, text = (part.strip() for part in stripped.partition(":"))
        else:
            text = f"{text} {stripped}"
    if name:
        yield name, text


def enable(name: str) -> None:
    """Switches a plugin on in the project's settings, and says where.

    Raises:
        ConfigurationError: it is not installed, cannot be loaded, or is chosen by an argument.
    """
    entry = select(name)
    if entry.kind in settings.CHOSEN_BY:
        raise ConfigurationError(settings.refusal(entry.kind, entry.name))
    info = load_info(entry.kind, entry.name)
    if info.chosen_by is not None:
        chosen = ", ".join(info.arguments)
        raise ConfigurationError(
            f"The {entry.kind} '{entry.name}' is not enabled by name: "
            + (
                f"it is active where its arguments ask for it ({chosen})."
                if chosen
                else "it decides by itself."
            )
        )
    from drivetrain.requirements import missing

    lacking = missing(info)
    if lacking:
        raise ConfigurationError(f"The {entry.kind} '{entry.name}' cannot be enabled yet: {probed(entry)}")
    path, changed = settings.enable(entry.name)
    say(f"{'Enabled' if changed else 'Already enabled'}: {entry.kind} '{entry.name}', in {_short(path)}.")


def disable(name: str) -> None:
    """Switches a plugin off in the project's settings, also one that is no longer installed.

    Raises:
        ConfigurationError: it is not switched on.
    """
    written = settings.enabled_names()
    if name not in written:
        from drivetrain.errors import did_you_mean

        path = settings.find()
        raise ConfigurationError(
            f"Plugin '{name}' is not enabled{f' in {_short(path)}' if path else ''}.{did_you_mean(name, written)}"
            f" Enabled: {', '.join(written) or 'none'}."
        )
    path, _ = settings.disable(name)
    say(f"Disabled: '{name}', in {_short(path)}.")


def _short(path: Path | None) -> str:
    if path is None:
        return settings.FILE
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
