"""`python -m launch.sky`; the code is in `rlhf/cli/cluster/sky.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("sky")
