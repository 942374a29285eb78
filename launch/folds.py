"""`python -m launch.folds`; the code is in `rlhf/cli/folds.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("folds")
