"""`python -m launch.jobset`; the code is in `rlhf/cli/cluster/jobset.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("jobset")
