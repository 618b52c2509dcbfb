"""FairScale's engines: sharded optimizer state (`simple`), and its fully sharded data parallelism."""
