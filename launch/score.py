"""`python -m launch.score`; the code is in `rlhf/cli/score.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("score")
