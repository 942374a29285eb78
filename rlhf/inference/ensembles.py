"""Several reward models combined into one score that is conservative where they disagree.

    mean                  (1/E) sum_e r_e
    min                   min_e r_e                              worst-case optimisation (WCO)
    mean_minus_variance   mean_e r_e - lambda * var_e r_e        uncertainty-weighted (UWO)

Members are trained on the same data with different seeds, each centred on the demonstrations, so
that their rewards share one zero.  Source: Coste et al. 2023, arXiv:2310.02743.
"""

RULES = ("mean", "min", "mean_minus_variance")


def check_rule(rule: str, variance_coef: float, prefix: str = "") -> None:
  """Raises ValueError unless `rule` is one of `RULES` and lambda is 0 or more.

  Args:
    prefix: put before the two names in messages, such as "--".
  """
  if rule not in RULES:
    raise ValueError(f"{prefix}ensemble {rule!r}; choose from {', '.join(RULES)}")
  if variance_coef < 0:
    raise ValueError(f"{prefix}variance_coef {variance_coef}; use 0 or more")


def combine(score_EN, rule: str, *, variance_coef: float = 0.0):
  """One score of each sample from those of E reward models.

  Args:
    score_EN: float, numpy or jax array; the members are the first axis, any axes follow.
    rule: one of `RULES`.
    variance_coef: lambda, in 1 / reward units; used only by "mean_minus_variance".  The variance is
      that of the members themselves, sum (r - mean)^2 / E.

  Returns:
    the array without its first axis.

  Raises:
    ValueError: an unknown rule, or a negative lambda.
  """
  check_rule(rule, variance_coef)
  if rule == "min":
    return score_EN.min(axis=0)
  mean_N = score_EN.mean(axis=0)
  return mean_N - variance_coef * score_EN.var(axis=0) if rule == "mean_minus_variance" else mean_N
