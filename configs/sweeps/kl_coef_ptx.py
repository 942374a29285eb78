from rlhf.configs.sweeps.kl_coef_ptx import get_sweep as get_sweep
