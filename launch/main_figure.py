"""`python -m launch.main_figure`; the code is in `rlhf/cli/main_figure.py`."""

from rlhf.cli import main

if __name__ == "__main__":
  main.run("main_figure")
