from rlhf.configs.sweeps.ptx_coef import get_sweep as get_sweep
