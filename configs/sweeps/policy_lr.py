from rlhf.configs.sweeps.policy_lr import get_sweep as get_sweep
