"""`python -m launch.pipeline`; the code is in `rlhf/cli/pipeline.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("pipeline")
