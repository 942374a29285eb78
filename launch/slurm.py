"""`python -m launch.slurm`; the code is in `rlhf/cli/cluster/slurm.py`."""

import sys

from rlhf.cli.cluster.slurm import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
