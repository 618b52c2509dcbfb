"""The model on disk and on the hub: the part of the Trainer that saves and shares."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from drivetrain import discover, settings
from drivetrain.base import TrainerBase
from drivetrain.checkpoint import write_model
from drivetrain.checkpoint.manifest import FileRecord
from drivetrain.errors import ConfigurationError, HubError
from drivetrain.evaluation_weights import evaluation_weights
from drivetrain.plugin import import_string
from drivetrain.requirements import missing
from drivetrain.resolve import resolve

if TYPE_CHECKING:
    from drivetrain.hub import Pushing, Uploads
    from drivetrain.slots import Hub

logger = logging.getLogger("drivetrain")


class Output(TrainerBase):
    """The part of the Trainer that saves the model and pushes it.

    Attributes:
        hub_model_id: the repository, once there is one.
    """

    hub_model_id: str | None = None
    _pushing: Pushing | None = None
    _written: dict[str, FileRecord]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and the tokenizer, where `from_pretrained` finds them.

        Args:
            output_dir: by default the output folder.
        """
        folder = output_dir if output_dir is not None else self.args.output_dir
        in_thread = self._writer is not None and self._writer.is_writer()
        with nullcontext() if in_thread else evaluation_weights(self.run):
            if self.run.processes.world_size == 1 and self._writer is None:
                self._save(folder)
            else:
                state = self._weights()  # a collective
                if self.args.should_save and self.run.keeps_state:
                    self._save(folder, state_dict=state)
        if self.args.push_to_hub and not _internal_call:
            self._push_saved(folder)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The whole model's weights; under a strategy that spreads them a collective."""
        if self._snapshot is not None and (self._writer is None or self._writer.is_writer()):
            # A checkpoint is being written: its state was gathered from all ranks, and training may go on.
            return self._snapshot.weights
        if self._session is not None and self._trains_still():
            return self._session.weights()
        # A model that was too large for one process stays spread: each rank holds a part of a tensor.
        whole: dict[int, torch.Tensor] = {}
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if not hasattr(tensor, "full_tensor"):
                weights[name] = tensor.detach() if isinstance(tensor, torch.Tensor) else tensor
                continue
            if id(tensor) not in whole:  # of tied ones once
                gathered = tensor.detach().full_tensor()
                whole[id(tensor)] = gathered.cpu() if self.args.should_save else gathered.new_empty(0)
            weights[name] = whole[id(tensor)]
        return weights

    def _save_into_checkpoint(self, folder: str) -> dict[str, FileRecord]:
        """What a checkpoint calls for the weights: `save_model`, which a script may have overridden.

        Returns:
            What is known of the files with weights, where nobody can have changed them since they were written.
        """
        self._written = {}
        self.save_model(folder, _internal_call=True)
        return {} if self._own_saves() else self._written

    def _own_saves(self) -> tuple[str, ...]:
        """What of the writing of a model a subclass does in its own way."""
        names = ("save_model", "_save")
        return tuple(name for name in names if getattr(type(self), name) is not getattr(Output, name))

    def _save_description(self, folder: str) -> None:
        """The configuration and the tokenizer, for a checkpoint whose weights every process writes a part of."""
        config = getattr(self.model, "config", None)
        for described in (config, getattr(self.model, "generation_config", None), self.tokenizer):
            save_pretrained = getattr(described, "save_pretrained", None)
            if callable(save_pretrained):
                save_pretrained(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Writes weights, configuration and tokenizer. Override it for your own files.

        Args:
            output_dir: by default the output folder.
            state_dict: the weights; by default the model's.
        """
        folder = output_dir if output_dir is not None else self.args.output_dir
        self._written = write_model(
            self.model,
            folder,
            weights=self._weights() if state_dict is None else state_dict,
            max_shard_size=self.args.max_shard_size,
            processing_class=self.tokenizer,
        )

    # -- the hub ---------------------------------------------------------------------------------------

    def _hub(self) -> Hub:
        """The hub that the arguments choose; without push_to_hub the first that is ready, for its model card."""
        plan = resolve(
            self.args,
            kinds=("hub",),
            instances=self._plugins,
            settings=settings.load(),
            made=self._made_plugins,
        )
        active = plan.slot("hub")
        if active is None:
            ready = [name for name in discover.names("hub") if not missing(discover.load_info("hub", name))]
            if not ready:
                raise ConfigurationError(
                    "No hub plugin is installed that is ready. Run: pip install 'drivetrain[huggingface]'"
                )
            name = "huggingface" if "huggingface" in ready else ready[0]
            info = discover.load_info("hub", name)
            options = info.options_class()
            made = import_string(info.implementation)
            plan.manager.register(made() if options is None else made(options()), name=f"hub:{name}")
        else:
            self._made_plugins[active.key] = active.plugin
        hub: Hub = plan.manager.hook.make_hub(run=self.run)
        return hub

    def _pushes(self) -> Pushing:
        """What sends to the hub, made at its first use."""
        if self._pushing is None:
            from drivetrain.hub import Pushing

            self._pushing = Pushing(self)
        return self._pushing

    def init_hf_repo(self) -> None:
        """Makes the repository of `hub_model_id`, if it is not there."""
        if self.is_world_process_zero():
            self.hub_model_id = self._pushes().open()

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any
    ) -> Any:
        """Saves the model, writes its card and uploads the output folder, without its checkpoints.

        Args:
            commit_message: of the upload.
            blocking: wait for it.
            **kwargs: for `create_model_card`.

        Returns:
            What the hub calls the upload, its address; a future of that where `blocking` is False.

        Raises:
            HubError: the model is not at the hub, after several attempts.
        """
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo()
        return self._pushes().output(commit_message or "End of training", blocking, kwargs)

    def _push_saved(self, folder: str) -> None:
        """Uploads the model that a script has saved. That it does not get there is a warning."""
        same = os.path.realpath(folder) == os.path.realpath(self.args.output_dir)
        if same and type(self).push_to_hub is Output.push_to_hub:
            self._pushes().saved("Model save")
            return
        try:
            self.push_to_hub(commit_message="Model save")
        except HubError as error:
            logger.warning("%s", error)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes README.md, the model's card, in the output folder.

        Args:
            language: of the data.
            license: of the model.
            tags: words that it is found by.
            model_name: the title; by default the repository's name.
            finetuned_from: the model that training began with; by default what the configuration says.
            tasks: what it does, by the hub's names; the first is the card's `pipeline_tag`.
            dataset_tags: the data, by the hub's names.
            dataset: the data, by the names that a reader knows.
            dataset_args: the part of them, or how they were made.
        """
        if not self.is_world_process_zero():
            return
        self._pushes().write_card(
            self.args.output_dir,
            language=language,
            license=license,
            tags=tags,
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=tasks,
            dataset_tags=dataset_tags,
            dataset=dataset,
            dataset_args=dataset_args,
        )

    @property
    def push_in_progress(self) -> Uploads | None:
        """The uploads: `is_done()`, `wait_until_done()`, `jobs`; None where there have been none."""
        return None if self._pushing is None else self._pushing.uploads

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads what `hub_strategy` wants of a checkpoint. Called after every save while `push_to_hub` is set."""
        self._pushes().checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        """Waits for the uploads that are under way."""
        if self._pushing is not None:
            self._pushing.uploads.wait_until_done()

    def init_git_repo(self, at_init: bool = False) -> None:
        """Git repositories are not used for uploads: call `init_hf_repo`."""
        raise ConfigurationError(
            "init_git_repo is no longer there: uploads go over HTTP, call init_hf_repo()."
        )

    def create_accelerator_and_postprocess(self) -> None:
        """There is no Accelerator: the strategy and precision plugins took its place."""
        raise ConfigurationError(
            "create_accelerator_and_postprocess is not there: strategy and precision plugins took accelerate's place."
        )

    # -- what transforms do now ------------------------------------------------------------------------

    def torch_jit_model_eval(self, model: Any, dataloader: Any, training: bool = False) -> Any:
        """A trace of the model by a loader's first batch, as the transform `jit` makes it; in training the model.

        Args:
            model: its weights must stay as they are while the trace is used.
            dataloader: whose first batch is taken.
            training: whether the model is to be trained.
        """
        if training:
            return model
        if dataloader is None:
            logger.warning(
                "torch_jit_model_eval has no dataloader to take a batch from, so nothing is traced."
            )
            return model
        inputs = self._prepare_inputs(next(iter(dataloader)))
        return transform_class("jit").traced(model, inputs)

    def ipex_optimize_model(self, model: Any, training: bool = False, dtype: Any = None) -> Any:
        """The model as Intel's extension optimises it, as the transform `ipex` does; in training with `self.optimizer`.

        Args:
            model: changed in place in training, else copied.
            training: whether the model is to be trained.
            dtype: of the optimised model; by default float32, and under `bf16_full_eval` bfloat16 for an evaluation.
        """
        if dtype is None:
            half = self.args.bf16_full_eval and not training and not self.is_in_train
            dtype = torch.bfloat16 if half else torch.float32
        optimizer = self.optimizer if training else None
        model, optimizer = transform_class("ipex").optimized(model, optimizer, dtype)
        if training:
            self.optimizer = optimizer
        return model


def transform_class(name: str) -> Any:
    """The implementation of an installed transform.

    Raises:
        ConfigurationError: no such transform is installed.
    """
    return import_string(discover.load_info("transform", name).implementation)
