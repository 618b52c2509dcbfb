"""XLA devices: what is missing for them here."""
