"""`python -m launch.sky`; the code is in `rlhf/cli/cluster/sky.py`."""

import sys

from rlhf.cli.cluster.sky import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
