"""The share of the steps during which a part of a recipe acts."""


def acts_at(start: float, end: float, step: int, steps: int) -> bool:
    """Whether a part acts in this step, counted from 0. Source: A1111's ControlNet extension (the rule)."""
    return start <= step / max(steps, 1) <= end
