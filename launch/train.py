"""`python -m launch.train`; the code is in `rlhf/cli/train.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("train")
