"""SD 1.x's noise schedule, which training draws from and every checkpoint carries."""

import torch

STEPS = 1000
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, 0).float()
"""`scaled_linear`: Rombach et al. 2022, configuration files of the v1 release."""
