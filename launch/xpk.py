"""`python -m launch.xpk`; the code is in `rlhf/cli/cluster/xpk.py`."""

import sys

from rlhf.cli.cluster.xpk import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
