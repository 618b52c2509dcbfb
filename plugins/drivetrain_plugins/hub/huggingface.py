"""The Hugging Face Hub."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import utils as client
from huggingface_hub.utils import HfHubHTTPError  # where 0.17 has it, too

from drivetrain.errors import HubError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.secret import struck
from drivetrain.slots import Upload
from drivetrain_plugins.hub.card import model_card

# Of a refusal these may go well when they are tried again: a lost race, too many requests, a hub in trouble.
_TEMPORARY = {408, 409, 412, 423, 425, 429}
_LARGE = 1 << 20
_LARGE_KINDS = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".gguf")


class HuggingFace:
    """Answers `make_hub`."""

    def __init__(self) -> None:
        self.hub = HuggingFaceHub()

    @hookimpl
    def make_hub(self, run: Run) -> HuggingFaceHub:
        """The hub, the same one for the whole life of the plugin."""
        self.hub.args = run.args
        return self.hub


class HuggingFaceHub:
    """Repositories of models. The token is taken from the arguments at each call, else from where huggingface_hub
    itself looks (`HF_TOKEN`, a login); it is kept nowhere.

    Attributes:
        args: the arguments of the run.
    """

    args: Any = None

    def __init__(self) -> None:
        self._repositories: dict[tuple[str, str | None], str] = {}  # what was asked for -> its name in full

    def _api(self) -> HfApi:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=self.args.hub_token or None)

    def create(self, run: Run) -> str:
        """Makes the repository if it is not there.

        Returns:
            Its name with its owner.

        Raises:
            HubError: the hub refuses it, or does not answer.
        """
        wanted = run.args.hub_model_id or Path(run.args.output_dir).absolute().name
        key = wanted, os.environ.get("HF_ENDPOINT")
        if key not in self._repositories:
            try:
                with self._bounded():
                    made = self._api().create_repo(wanted, private=run.args.hub_private_repo, exist_ok=True)
            except HfHubHTTPError as error:
                status = _status(error)
                raise HubError(
                    f"the hub refused to make the repository {wanted!r} ({status or 'no answer'}). "
                    "Check hub_model_id, and log in with 'hf auth login' or set HF_TOKEN.",
                    temporary=_is_temporary(status),
                ) from error
            except ValueError as error:  # no name that a repository can have
                raise HubError(f"the hub takes no repository {wanted!r}: {_first_line(error)}") from error
            except Exception as error:  # the client's own classes for a lost network differ with its version
                raise HubError(
                    f"the hub could not be asked for the repository {wanted!r} ({_first_line(error)}). "
                    "Check the network, or leave push_to_hub out.",
                    temporary=True,
                ) from error
            self._repositories[key] = made.repo_id
        return self._repositories[key]

    def upload(self, upload: Upload) -> Any:
        """Sends files in one commit, so that nobody sees half of them.

        Returns:
            The commit's information.

        Raises:
            HubError: the hub refuses them, or does not answer.
        """
        api = self._api()
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in upload.files.items()
        ]
        try:
            with self._bounded(), _quiet():
                deletions = [CommitOperationDelete(path_in_repo=name) for name in _stale(api, upload)]
                if hasattr(api, "preupload_lfs_files"):
                    for addition in additions:
                        if _is_large(addition):
                            # One by one: for several the client starts threads that keep the process from ending.
                            api.preupload_lfs_files(upload.repository, [addition])
                return api.create_commit(
                    upload.repository, [*additions, *deletions], commit_message=upload.message
                )
        except Exception as error:
            raise _told(error, upload.repository) from error

    def write_card(self, run: Run, folder: str, **fields: Any) -> str:
        """Writes `README.md` in `folder` and returns its path."""
        path = Path(folder) / "README.md"
        if not fields.get("model_name"):
            named = run.args.hub_model_id or Path(run.args.output_dir).absolute().name
            fields["model_name"] = named.rpartition("/")[2]
        card = model_card(run, config=_config_in(folder), **fields)
        path.write_text(struck(str(card)), encoding="utf-8")
        return str(path)

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """A hub that says nothing for so long as the end of a run would wait has failed.

        By itself the client waits for ever. A time that somebody has set for it stays.
        """
        session: Any = client.get_session() if hasattr(client, "get_session") else None
        limits = getattr(session, "timeout", None)
        unlimited = limits is not None and all(
            getattr(limits, name, 0) is None for name in ("read", "write", "connect", "pool")
        )
        if unlimited:
            session.timeout = max(float(self.args.hub_patience), 1.0)
        try:
            yield
        finally:
            if unlimited:
                session.timeout = limits


def _config_in(folder: str) -> dict[str, Any]:
    """What `config.json` says, where there is one."""
    try:
        found = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stale(api: HfApi, upload: Upload) -> list[str]:
    """What is in the repository, and gone in what is sent."""
    if not upload.replaces:
        return []
    return [
        name
        for name in api.list_repo_files(upload.repository)
        if name not in upload.files and any(_matches(name, pattern) for pattern in upload.replaces)
    ]


def _matches(name: str, pattern: str) -> bool:
    """A pattern without a slash is about the root."""
    return fnmatch.fnmatchcase(name, pattern) and ("/" in pattern or "/" not in name)


def _is_large(addition: Any) -> bool:
    path = str(addition.path_or_fileobj)
    return path.endswith(_LARGE_KINDS) or os.path.getsize(path) > _LARGE


def _status(error: BaseException) -> int | None:
    """The status of an answer, which the client may have wrapped in an error of another kind."""
    found: BaseException | None = error
    while found is not None:
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        found = found.__cause__ or found.__context__
    return None


def _is_temporary(status: int | None) -> bool:
    return status is None or status >= 500 or status in _TEMPORARY


def _told(error: Exception, repository: str) -> HubError:
    """An error of the client in words."""
    status = _status(error)
    if isinstance(error, OSError) and error.filename is not None:
        return HubError(f"{error.filename} cannot be read ({error.strerror})")
    if status in (401, 403):
        return HubError(
            f"the hub refused it ({status}): log in with 'hf auth login', or set HF_TOKEN to a token that may write to "
            f"{repository}"
        )
    if status == 404:
        return HubError(f"there is no repository {repository} any more, or this token may not see it (404)")
    if status in (409, 412):
        return HubError(f"somebody else wrote to {repository} at the same time ({status})", temporary=True)
    if status is not None:
        trouble = "asks for fewer requests" if status == 429 else "is in trouble"
        if _is_temporary(status):
            return HubError(f"the hub {trouble} ({status})", temporary=True)
        return HubError(f"the hub refused it ({status}): {_first_line(error)}")
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return HubError(f"the hub does not take it: {_first_line(error)}")
    return HubError(f"the hub did not answer ({_first_line(error)})", temporary=True)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None and isinstance(error, RuntimeError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return struck(f"{type(error).__name__}: {' '.join(lines)[:200]}" if lines else type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, which a thread would draw into that of the training, and without word of what is there already."""
    log = logging.getLogger("huggingface_hub.hf_api")
    had_bars = not client.are_progress_bars_disabled()
    if had_bars:
        client.disable_progress_bars()
    log.addFilter(_is_news)
    try:
        yield
    finally:
        log.removeFilter(_is_news)
        if had_bars:
            client.enable_progress_bars()


def _is_news(record: logging.LogRecord) -> bool:
    return "Skipping to prevent empty commit" not in record.getMessage()
