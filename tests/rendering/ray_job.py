"""A job on a Ray cluster of this machine: a head and two more nodes, one of whose workers is killed. Run by a test.

Prints a JSON object: the pixels that Ray's workers rendered and those that this process renders, in the same order.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def main(count: int, folder: Path) -> None:
    import psutil
    from ray.cluster_utils import Cluster

    from civman.domain.events import Notice, Step
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.render_request import LoraRequest, RenderRequest
    from civman.library import Library

    one = Machine("cpu", threads=1)
    quickest = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 1.0, "sampler": "Euler"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    notices: list[str] = []
    killed: list[int] = []

    def on_event(event: object) -> None:
        if isinstance(event, Notice):
            notices.append(event.message)
        if isinstance(event, Step) and event.first == 5 and not killed:
            workers = [each for each in psutil.process_iter(["name", "cmdline"]) if "ray::_Actor" in _title(each)]
            killed.append(workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with Library.open() as library:
        plans = [
            library.plan(
                RenderRequest(
                    ("tiny-sd1", "tiny-sd2", "tiny-sdxl")[number % 3],
                    f"image {number}",
                    seed=number,
                    loras=(LoraRequest("ink"),) if number % 6 == 0 else (),
                    **quickest,
                )
            )
            for number in range(count)
        ]
        try:
            there = library.render(
                plans, output=folder / "there", machine=one, on=f"ray://{cluster.address}", on_event=on_event
            )
        finally:
            cluster.shutdown()
        here = library.render(plans, output=folder / "here", machine=one)
    files = [{path.read_bytes() for path in (folder / side).iterdir()} for side in ("there", "here")]
    print(
        json.dumps(
            {
                "there": [each.pixel_sha256 for each in there], "here": [each.pixel_sha256 for each in here],
                "notices": notices, "killed": len(killed), "same_files": files[0] == files[1],
            }
        )
    )  # fmt: skip


def _title(process: Any) -> str:
    return " ".join(process.info["cmdline"] or [process.info["name"] or ""])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
