"""Reports the progress of images that are rendered side by side in slots as the progress of one job."""

from dataclasses import replace

from civman.domain.events import Event, OnEvent, Step


class SlotProgress:
    """The progress of a job of `count` images. Its `Step` events add up the steps of all images in slots."""

    def __init__(self, count: int, on_event: OnEvent) -> None:
        self._count, self._on_event = count, on_event
        self._done = 0
        self._steps: dict[tuple[int, int], tuple[int, int]] = {}
        """Maps each image in a slot to its number of finished steps and its total number of steps."""

    def of(self, place: tuple[int, int]) -> OnEvent:
        """Return a function that receives the events of one image.

        `place`: the position of the image's plan, and the position of the image in that plan.
        """
        before: list[Step] = []
        self._steps[place] = (0, 1)

        def tell(event: Event) -> None:
            if not isinstance(event, Step):
                self._on_event(event)
                return
            if not before or before[-1].stage != event.stage:
                before.append(event)
            earlier = sum(each.steps for each in before[:-1])
            self._steps[place] = (earlier + event.step, earlier + event.steps)
            done, whole = (sum(numbers) for numbers in zip(*self._steps.values(), strict=True))
            self._on_event(
                replace(
                    event, step=done, steps=max(whole, done), first=self._done + 1, pictures=len(self._steps),
                    count=self._count, stage="first",
                )
            )  # fmt: skip

        return tell

    def finish(self, place: tuple[int, int]) -> None:
        """Record that the image at this place is finished."""
        del self._steps[place]
        self._done += 1
