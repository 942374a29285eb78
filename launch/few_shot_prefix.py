"""`python -m launch.few_shot_prefix`; the code is in `rlhf/cli/few_shot_prefix.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("few_shot_prefix")
