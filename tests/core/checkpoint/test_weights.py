"""Weights: where `from_pretrained` finds them, tied or sharded, and back into a module."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from drivetrain.checkpoint import (
    CheckpointContents,
    load_checkpoint,
    load_weights,
    parse_size,
    read_weights,
    save_checkpoint,
    set_weights,
    write_model,
    write_weights,
)
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState


class Tied(torch.nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.body = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_a_plain_module_comes_back_and_safetensors_reads_it(tmp_path: Path, trained: Any) -> None:
    write_model(trained.model, str(tmp_path))
    read = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], value) for name, value in trained.model.state_dict().items())
    other = type(trained)(steps=0, seed=9).model
    load_weights(other, str(tmp_path))
    assert equal(trained.model, other)


def test_tied_weights_are_written_once_and_all_come_back(tmp_path: Path) -> None:
    model = Tied()
    write_model(model, str(tmp_path))
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == {
        "embed.weight", "body.weight", "body.bias"
    }  # fmt: skip
    for other in (Tied(), Tied(tie=False)):
        load_weights(other, str(tmp_path))
        assert equal(model, other)


def test_a_name_that_is_tied_in_the_model_need_not_be_in_the_folder(tmp_path: Path) -> None:
    model = Tied()
    kept = {name: value for name, value in model.state_dict().items() if name != "embed.weight"}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors")  # no word of ties in this header
    other = Tied()
    load_weights(other, str(tmp_path))
    assert equal(model, other)
    with pytest.raises(CheckpointError, match=r"lacks 'embed\.weight'"):
        load_weights(Tied(tie=False), str(tmp_path))


def test_weights_that_are_parts_of_one_memory_are_written_each(tmp_path: Path) -> None:
    memory = torch.arange(10.0)
    write_weights(str(tmp_path), {"all": memory, "part": memory[:4], "turned": memory[:9].reshape(3, 3).t()})
    back = read_weights(str(tmp_path))
    assert torch.equal(back["all"], memory)
    assert torch.equal(back["part"], memory[:4])
    assert torch.equal(back["turned"], memory[:9].reshape(3, 3).t())


def test_large_weights_are_sharded_with_an_index(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)])
    write_model(model, str(tmp_path), max_shard_size="2KB")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert "model-00001-of-00004.safetensors" in names
    assert "model.safetensors" not in names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert all((tmp_path / name).stat().st_size <= 2000 + 1024 for name in index["weight_map"].values())
    other = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)])
    load_weights(other, str(tmp_path))
    assert equal(model, other)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00004\.safetensors, which .* names, is missing"
    ):
        load_weights(other, str(tmp_path))


@pytest.mark.parametrize(("before", "after"), [("5GB", "2KB"), ("2KB", "5GB"), ("1200B", "3KB")])
def test_a_save_over_another_leaves_nothing_of_it(tmp_path: Path, before: str, after: str) -> None:
    """One file where there are shards now would be read in their place: old weights, and nobody would know."""
    layers = [torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)]) for _ in range(3)]
    old, new, read = layers
    write_model(old, str(tmp_path), max_shard_size=before)
    (tmp_path / "model-notes.safetensors.txt").write_text("mine")
    (tmp_path / "model_extra.json").write_text('{"gone": 1}')
    write_model(new, str(tmp_path), max_shard_size=after)
    load_weights(read, str(tmp_path))
    assert equal(new, read)
    (tmp_path / "model-notes.safetensors.txt").unlink()  # what is nobody's weights stays
    fresh = tmp_path / "fresh"
    write_model(new, str(fresh), max_shard_size=after)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(os.listdir(fresh))


class Foreign(torch.nn.Linear):
    """Writes itself, as models of other libraries do."""

    def save_pretrained(self, folder: str, max_shard_size: str = "5GB") -> None:
        write_weights(folder, self.state_dict(), max_shard_size)


def test_a_save_of_another_library_over_another_leaves_nothing_of_it_either(tmp_path: Path) -> None:
    old, new = Foreign(16, 16), Foreign(16, 16)
    write_model(old, str(tmp_path))
    write_model(new, str(tmp_path), max_shard_size="1030B")
    assert all(
        torch.equal(value, new.state_dict()[name]) for name, value in read_weights(str(tmp_path)).items()
    )
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("size", ["5GB", "2KB"])
def test_an_adapter_leaves_its_base_where_it_lies(tmp_path: Path, size: str) -> None:
    class Adapter(torch.nn.Linear):
        def save_pretrained(self, folder: str) -> None:
            safetensors.torch.save_file(self.state_dict(), os.path.join(folder, "adapter_model.safetensors"))

    base = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)])
    write_model(base, str(tmp_path), max_shard_size=size)
    there = set(os.listdir(tmp_path))
    write_model(Adapter(2, 2), str(tmp_path))
    assert set(os.listdir(tmp_path)) == there | {"adapter_model.safetensors"}
    read = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)])
    load_weights(read, str(tmp_path))
    assert equal(base, read)


def test_what_is_no_safetensors_tensor_is_kept_too(tmp_path: Path) -> None:
    class WithExtra(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = {"amax": torch.tensor(2.0), "count": 3}
            self.register_buffer("rotation", torch.tensor([1 + 2j], dtype=torch.complex128))
            self.register_buffer("nothing", torch.empty(0, 4))

        def get_extra_state(self) -> Any:
            return self.scale

        def set_extra_state(self, state: Any) -> None:
            self.scale = state

    model, other = WithExtra(), WithExtra()
    other.scale = {}
    other.rotation.zero_()  # type: ignore[operator, union-attr]
    write_model(model, str(tmp_path))
    load_weights(other, str(tmp_path))
    assert other.scale == {"amax": torch.tensor(2.0), "count": 3}
    assert torch.equal(other.rotation, model.rotation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.uint16]
)
def test_every_dtype_keeps_its_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(32, dtype=torch.uint8).view(dtype)
    write_weights(str(tmp_path), {"x": value, "scalar": value[3]})
    back = read_weights(str(tmp_path))
    assert back["x"].dtype == dtype
    assert back["scalar"].shape == ()
    assert torch.equal(back["x"].view(torch.uint8), value.view(torch.uint8))


# -- plain Hugging Face folders ----------------------------------------------------------------------------


def tiny(tie: bool = True) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=20, n_positions=16, tie_word_embeddings=tie
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("max_shard_size", ["5GB", "3KB"])
def test_from_pretrained_reads_a_checkpoint_and_the_checkpoint_reads_itself(
    tmp_path: Path, max_shard_size: str
) -> None:
    model = tiny()
    folder = str(tmp_path / "checkpoint-1")
    contents = CheckpointContents(train_state=TrainState(dict(model.state_dict())))
    save_checkpoint(
        folder, contents, save_model=lambda f: write_model(model, f, max_shard_size=max_shard_size)
    )
    assert {"config.json", "generation_config.json"} <= set(os.listdir(folder))
    assert not os.path.exists(os.path.join(folder, "weights.safetensors"))
    again = type(model).from_pretrained(folder)
    assert equal(model, again)
    other = tiny()
    for parameter in other.parameters():
        parameter.data.zero_()
    state = load_checkpoint(folder, model=other).train_state
    assert state is not None
    assert set(state.weights) == set(model.state_dict())
    set_weights(other, state.weights)
    assert equal(model, other)
    load_weights(other, folder)
    assert equal(model, other)


def test_a_tokenizer_is_saved_beside(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")
    write_model(tiny(), str(tmp_path), processing_class=tokenizer)
    assert transformers.AutoTokenizer.from_pretrained(str(tmp_path))("a b").input_ids == [0, 1]


def test_what_save_model_leaves_out_or_changes_is_saved_beside(
    tmp_path: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def adapter_alone(folder: str) -> None:
        safetensors.torch.save_file(
            {"0.weight": trained.model[0].weight}, os.path.join(folder, "model.safetensors")
        )

    def half(folder: str) -> None:
        write_weights(
            folder,
            {k: v.half() if v.is_floating_point() else v for k, v in trained.model.state_dict().items()},
        )

    for number, save_model in enumerate((adapter_alone, half, lambda folder: None)):
        folder = str(tmp_path / f"checkpoint-{number}")
        with caplog.at_level(logging.INFO, "drivetrain"):
            save_checkpoint(folder, trained.contents(), save_model=save_model)
        assert "is not the whole state" in caplog.text
        other = type(trained)(steps=0, seed=9).model
        state = load_checkpoint(folder).train_state
        assert state is not None
        set_weights(other, state.weights)
        assert equal(trained.model, other)


def test_old_pickled_weights_are_read_without_running_them(tmp_path: Path, trained: Any) -> None:
    torch.save(trained.model.state_dict(), tmp_path / "pytorch_model.bin")
    other = type(trained)(steps=0, seed=9).model
    load_weights(other, str(tmp_path))
    assert equal(trained.model, other)

    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harmed"),)

    torch.save({"0.weight": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read without running code"):
        load_weights(other, str(tmp_path))
    assert not (tmp_path / "harmed").exists()


def test_links_are_followed_only_inside_a_folder_or_its_hub_cache(tmp_path: Path, trained: Any) -> None:
    write_model(trained.model, str(tmp_path / "blobs"))
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/model.safetensors")
    load_weights(trained.model, str(snapshot))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").symlink_to("../blobs/model.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder, and is not followed"):
        load_weights(trained.model, str(elsewhere))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3, None])
def test_an_index_cannot_name_what_lies_elsewhere(tmp_path: Path, trained: Any, name: Any) -> None:
    write_model(trained.model, str(tmp_path))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"0.weight": name}}))
    with pytest.raises(CheckpointError):
        load_weights(trained.model, str(folder))


# -- errors -------------------------------------------------------------------------------------------------


def sentence(model: torch.nn.Module, folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_model(torch.nn.Linear(3, 2), str(tmp_path))
    assert "'weight' has shape (2, 3)" in sentence(torch.nn.Linear(4, 2), tmp_path)
    assert "has 'bias', which the model lacks" in sentence(torch.nn.Linear(3, 2, bias=False), tmp_path)
    assert "lacks '0.weight', '0.bias' and has" in sentence(
        torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path
    )
    load_weights(torch.nn.Linear(3, 2, bias=False), str(tmp_path), strict=False)
    write_weights(str(tmp_path), {"weight": torch.ones(2, 3, dtype=torch.int32), "bias": torch.ones(2)})
    assert "'weight' is torch.int32" in sentence(torch.nn.Linear(3, 2), tmp_path)
    half = torch.nn.Linear(3, 2).half()
    write_model(torch.nn.Linear(3, 2), str(tmp_path))
    load_weights(half, str(tmp_path))
    assert half.weight.dtype == torch.float16


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    assert "holds no weights" in sentence(model, tmp_path)
    write_model(model, str(tmp_path))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for content in (
        whole[:-1],
        whole[:40],
        b"",
        b"\xff" * 200,
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + whole[8:],
    ):
        path.write_bytes(content)
        assert "model.safetensors cannot be read" in sentence(model, tmp_path)


def test_sizes() -> None:
    assert parse_size("5GB") == 5 * 10**9
    assert parse_size("1.5 MiB") == 3 * 2**19
    assert parse_size(77) == 77
    for wrong in ("", "GB", "5 parsecs", "-1GB", "0", 0):
        with pytest.raises(CheckpointError, match="is not a size; write it as '5GB'"):
            parse_size(wrong)
