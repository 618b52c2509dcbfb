"""Our own strategies pass the contract that strangers' do."""

from __future__ import annotations

import pytest

from drivetrain.testing import StrategyContract

pytestmark = pytest.mark.timeout(1200)  # the first test of a class waits for all of its runs

FSDP = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"transformer_layer_cls_to_wrap": ["Block"]},
}


@pytest.mark.slow
class TestDDP(StrategyContract):
    strategy = "ddp"
    engine = "DistributedDataParallel"
    processes = (2,)


@pytest.mark.soak
class TestDDPWithMore(TestDDP):
    processes = (3, 4, 2)


@pytest.mark.soak
class TestSingle(StrategyContract):
    strategy = "single"
    processes = (1,)


@pytest.mark.soak
class TestFSDP1(StrategyContract):
    strategy = "fsdp"
    arguments = {**FSDP, "fsdp_version": 1}
    processes = (2, 1)
    engine = "FullyShardedDataParallel"
    shards = ("parameters", "optimizer")


@pytest.mark.soak
class TestFSDP2(StrategyContract):
    strategy = "fsdp"
    arguments = {**FSDP, "fsdp_version": 2}
    processes = (2, 3, 1)
    engine = "FSDPModule"
    shards = ("parameters", "optimizer")


@pytest.mark.soak
class TestZeRO1(StrategyContract):
    strategy = "deepspeed"
    arguments = {"deepspeed": {"zero_optimization": {"stage": 1}}}
    processes = (2,)
    engine = ("DeepSpeedEngine", "DeepSpeedZeroOptimizer")
    shards = ("optimizer",)
    environment = {"DS_ACCELERATOR": "cpu"}


@pytest.mark.soak
class TestZeRO2(TestZeRO1):
    arguments = {"deepspeed": {"zero_optimization": {"stage": 2}}}
    processes = (2, 3)


@pytest.mark.soak
class TestZeRO3(TestZeRO1):
    arguments = {"deepspeed": {"zero_optimization": {"stage": 3}}}
    processes = (2, 1)
    engine = ("DeepSpeedEngine", "DeepSpeedZeroOptimizer_Stage3")
    shards = ("parameters", "optimizer")


@pytest.mark.soak
class TestOSS(StrategyContract):
    strategy = "fairscale"
    arguments = {"sharded_ddp": "simple"}
    engine = ("ShardedDataParallel", "OSS")
    shards = ("optimizer",)
    refuses = {"loss_scale": "fairscale's own scaler does nothing without CUDA"}
