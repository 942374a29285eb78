"""`python -m launch.xpk`; the code is in `rlhf/cli/cluster/xpk.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("xpk")
