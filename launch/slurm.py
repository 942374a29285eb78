"""`python -m launch.slurm`; the code is in `rlhf/cli/cluster/slurm.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("slurm")
