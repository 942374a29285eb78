"""`python -m launch.jobset`; the code is in `rlhf/cli/cluster/jobset.py`."""

import sys

from rlhf.cli.cluster.jobset import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
