"""The Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import HfHubHTTPError  # where 0.17 has it, too

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.secret import struck
from drivetrain_plugins.hub.card import model_card

# Checkpoints, and what begins with a dot or an underscore, stay here: they are no part of the model.
IGNORED = ("_*", ".*", "*/.*", "checkpoint-*", "checkpoint-*/*")


class HuggingFace:
    """Answers `make_hub`, and makes the repository when training begins, so that a wrong name or token is
    known before the hours are spent."""

    def __init__(self) -> None:
        self.hub = HuggingFaceHub()

    @hookimpl
    def make_hub(self, run: Run) -> HuggingFaceHub:
        """The hub, the same one for the whole life of the plugin."""
        return self.hub

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Makes the repository."""
        if run.is_main_process:
            self.hub.create(run)


class HuggingFaceHub:
    """A model's repository. The token is taken from the arguments at each call, else from where
    huggingface_hub itself looks (`HF_TOKEN`, a login); it is kept nowhere."""

    def __init__(self) -> None:
        self._repositories: dict[str, str] = {}  # what was asked for -> what it is called in full

    def _api(self, run: Run) -> HfApi:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=run.args.hub_token or None)

    def create(self, run: Run) -> str:
        """Makes the repository if it is not there.

        Returns:
            Its name with its owner.

        Raises:
            ConfigurationError: the hub refuses it, or does not answer.
        """
        wanted = run.args.hub_model_id or Path(run.args.output_dir).absolute().name
        if wanted not in self._repositories:
            try:
                made = self._api(run).create_repo(wanted, private=run.args.hub_private_repo, exist_ok=True)
            except HfHubHTTPError as error:
                status = getattr(error.response, "status_code", "no answer")
                raise ConfigurationError(
                    f"push_to_hub=True: the hub refused to make the repository {wanted!r} ({status}). "
                    "Check hub_model_id, and log in with 'hf auth login' or set HF_TOKEN."
                ) from error
            except Exception as error:  # the client's own classes for a lost network differ with its version
                raise ConfigurationError(
                    f"push_to_hub=True: the hub could not be asked for the repository {wanted!r} "
                    f"({type(error).__name__}: {error}). Check the network, or leave push_to_hub out."
                ) from error
            self._repositories[wanted] = made.repo_id
        return self._repositories[wanted]

    def push(self, run: Run, folder: str, message: str, *, blocking: bool = True, **kwargs: Any) -> Any:
        """Uploads what is in `folder`, checkpoints left out, with a model card where it has none.

        Args:
            run: the run, as it stands.
            folder: where the model was saved.
            message: of the commit.
            blocking: wait for the upload.
            kwargs: fields of the card (`model_card`).

        Returns:
            The commit's information, or a future of it where `blocking` is False.
        """
        repository = self.create(run)
        if not (Path(folder) / "README.md").exists():
            self.write_card(run, folder, **kwargs)
        upload: Any = self._api(run).upload_folder  # its result depends on the last argument
        return upload(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=list(IGNORED),
            run_as_future=not blocking,
        )

    def write_card(self, run: Run, folder: str, **fields: Any) -> str:
        """Writes `README.md` in `folder` and returns its path."""
        path = Path(folder) / "README.md"
        fields.setdefault("model_name", (run.args.hub_model_id or Path(run.args.output_dir).absolute().name))
        path.write_text(struck(str(model_card(run, **fields))), encoding="utf-8")
        return str(path)
