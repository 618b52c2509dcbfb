"""The strategy `fsdp`: PyTorch's fully sharded data parallelism, in both of its generations."""
