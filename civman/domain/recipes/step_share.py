"""Whether a ControlNet or IP-Adapter acts in a step, given the share of the steps in which it is active."""


def acts_at(start: float, end: float, step: int, steps: int) -> bool:
    """Whether the ControlNet or IP-Adapter acts in this step, counted from 0.

    Source: A1111's ControlNet extension (the rule).
    """
    return start <= step / max(steps, 1) <= end
