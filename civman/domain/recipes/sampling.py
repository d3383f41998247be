"""The parameters of samplers and noise schedules that a recipe contains."""

from dataclasses import dataclass
from typing import Final

PROGRAMS: Final = ("a1111", "comfyui")
"""Programs whose rules for noise levels civman can follow.

ComfyUI computes noise levels in double precision, evaluates the model at whole timesteps, starts from noise times
√(1 + σ²), has different Beta and KL Optimal schedules, and drops the second-to-last level only for DPM2 and DPM2 a.
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters of the samplers and noise schedules, as this version of civman uses them.

    In training, √β rises linearly from √`beta_start` to √`beta_end` in `train_steps` steps. `rho`: Karras' exponent.
    `beta_shape`: both parameters of the beta distribution. `eta`: how much fresh noise ancestral and SDE samplers add;
    `noise_scale`: a factor for this noise; `eta_ddim`: the same as `eta`, but for DDIM. `s_churn`: how much noise
    Euler, Heun and DPM2 add before each step while the noise level is between `s_tmin` and `s_tmax` (0: no upper
    limit). `drop_penultimate`: drop the second-to-last noise level, whatever the sampler. `half_levels`: round the
    noise levels to half precision, as A1111 did before 1.8. `program`: the program whose rules for noise levels and
    timesteps apply, one of `PROGRAMS`. `sigmas`: the noise levels of the first pass, in place of a schedule's; empty:
    the schedule's.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    rho: float = 7.0
    beta_shape: float = 0.6
    eta: float = 1.0
    noise_scale: float = 1.0
    eta_ddim: float = 0.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    drop_penultimate: bool = False
    half_levels: bool = False
    program: str = "a1111"
    sigmas: tuple[float, ...] = ()


SAMPLING: Final = Sampling()
"""The default parameters. A recipe cannot change `beta_start`, `beta_end`, `train_steps`, `rho` and `beta_shape`."""
