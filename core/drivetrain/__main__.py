"""`python -m drivetrain`, and so `torchrun ... -m drivetrain train CONFIG.toml`."""

from drivetrain.cli import main

if __name__ == "__main__":
    main()
