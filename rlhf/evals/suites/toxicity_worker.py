"""Scores texts by alt-profanity-check in a process of its own, see `toxicity.scores`.

Reads JSON lines, each a list of texts, and answers each with the list of their scores.  The package
unpickles its weights when it is imported, and pins scikit-learn and joblib to single versions: it
stays out of processes that train.
"""

import json
import sys


def main() -> None:
  import profanity_check

  for line in sys.stdin:
    scores = profanity_check.predict_prob(json.loads(line))
    print(json.dumps([float(score) for score in scores]), flush=True)


if __name__ == "__main__":
  main()
