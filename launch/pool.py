"""`python -m launch.pool`; the code is in `rlhf/cli/pool.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("pool")
