"""`python -m launch.best_of_n`; the code is in `rlhf/cli/best_of_n.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("best_of_n")
