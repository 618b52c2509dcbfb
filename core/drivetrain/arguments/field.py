"""How an argument is declared: its default, what it does, who reads it and what it may be."""

from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Any

Check = Callable[[str, Any], Any]
"""Takes an argument's name and value, and returns the value in its settled form or raises `Wrong`."""

# What a type checker sees is everything that Python code may pass. What parsers see at run time is the form
# that a command line can write: transformers' HfArgumentParser takes one type an argument and calls it on
# the word.
if TYPE_CHECKING:
    FileOrDict = str | dict[str, Any] | None
    DictOrJson = dict[str, Any] | str | None
    ListOrJson = list[Any] | str | None
    PluginsOrJson = dict[str, Any] | list[Any] | str | None
    NameOrClass = str | type[Any]
    Names = str | list[str] | None
    Flags = str | list[Any] | bool | None
    FolderOrTrue = str | bool | None
else:
    FileOrDict = DictOrJson = ListOrJson = PluginsOrJson = Flags = FolderOrTrue = str | None
    NameOrClass = str
    Names = list[str] | None


class Wrong(ValueError):
    """An argument's value cannot be; the message is the sentence that the user reads."""


class Metadata(dict[str, Any]):
    """What `dataclasses.Field.metadata` holds for one argument.

    HfArgumentParser hands a field's metadata to `argparse` as they are, and argparse takes no key that it
    does not know. So whoever copies this mapping gets the keys that argparse understands; the others are
    there for whoever asks for them by name, as in `field.metadata["owner"]`.
    """

    def __init__(self, **entries: Any) -> None:
        super().__init__({key: entries.pop(key) for key in ("help", "choices") if key in entries})
        self._others = entries

    def __missing__(self, key: str) -> Any:
        return self._others[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The entry of that name, whether copies show it or not."""
        try:
            return self[key]
        except KeyError:
            return default


def about(help: str, *, owner: str = "core", **more: Any) -> Metadata:
    """The metadata of an argument; `argument` says what may be in it."""
    return Metadata(help=help, owner=owner, **more)


def argument(
    default: Any,
    help: str,
    *,
    owner: str = "core",
    least: float | None = None,
    most: float | None = None,
    choices: tuple[Any, ...] | None = None,
    check: Check | None = None,
    accepts: str | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field for one argument.

    Args:
        default: what it is when nobody sets it; never a mutable object.
        help: what it does, in a sentence; no per cent sign, which argparse would read as a format.
        owner: who reads it: `core`, a slot's kind (`optimizer`), or one plugin of a kind (`strategy:fsdp`).
        least, most: bounds of a number, both included.
        choices: the only values there are, where no enum says so.
        check: settles and checks the value instead of the check that its type gives.
        accepts: what Python code may pass beyond the type that a command line writes, for tables.
        secret: kept out of `repr`.
    """
    extras = {"least": least, "most": most, "choices": choices, "check": check, "accepts": accepts}
    given = {key: value for key, value in extras.items() if value is not None}
    return field(default=default, metadata=about(help, owner=owner, **given), repr=not secret)
