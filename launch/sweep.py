"""`python -m launch.sweep`; the code is in `rlhf/cli/sweep.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("sweep")
