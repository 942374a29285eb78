"""`python -m launch.evaluate_samples`; the code is in `rlhf/cli/evaluate_samples.py`."""

import sys

from rlhf.cli.evaluate_samples import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
