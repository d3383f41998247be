"""Decides whether a ControlNet or IP-Adapter is applied in a step, from its start and end as fractions of the steps."""


def acts_at(start: float, end: float, step: int, steps: int) -> bool:
    """Whether the ControlNet or IP-Adapter is applied in step `step`, counted from 0.

    Source: A1111's ControlNet extension (the rule).
    """
    return start <= step / max(steps, 1) <= end
