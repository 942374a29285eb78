"""`python -m launch.generate`; the code is in `rlhf/cli/generate.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("generate")
