"""`python -m launch.convert`; the code is in `rlhf/cli/convert.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("convert")
