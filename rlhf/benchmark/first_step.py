"""The first step of a case in a new program, for the case `startup`.

python -m rlhf.benchmark.first_step JOB.json
"""

import sys

from rlhf import workdir
from rlhf.benchmark import ours
from rlhf.benchmark.job import Job

if __name__ == "__main__":
  try:
    ours.make(Job(**workdir.read_json(sys.argv[1]))).run({})
  except ValueError as problem:
    sys.exit(f"error: {problem}")
