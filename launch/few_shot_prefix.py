"""`python -m launch.few_shot_prefix`; the code is in `rlhf/cli/few_shot_prefix.py`."""

import sys

from rlhf.cli.few_shot_prefix import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
