"""`python -m launch.evaluate`; the code is in `rlhf/cli/evaluate.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("evaluate")
