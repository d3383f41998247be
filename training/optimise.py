"""One training loop for all parts: Muon for matrices, AdamW for the rest, resumable at any checkpoint."""

import math
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly; (N, R, C) with R <= C.

    Source: Jordan et al. 2024, Muon, the quintic Newton-Schulz iteration with its published coefficients.
    """
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon:
    """Momentum whose update is made orthogonal, matrices of one shape treated together.

    Updates are scaled to the root mean square of AdamW's, 0.2 (Liu et al. 2025, section 2.2), so that one
    learning rate serves both.
    """

    def __init__(self, params: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.shapes: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for p in params:
            rows, columns = p.shape[0], p[0].numel()
            self.shapes[rows, columns].append(p)
        self.buffers = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.shapes.items()}

    @torch.no_grad()
    def step(self, lr: float, decay: float = 0.01) -> None:
        """One update from the gradients held by the parameters."""
        for shape, params in self.shapes.items():
            grads = torch.stack([p.grad.reshape(shape) for p in params])  # type: ignore[union-attr]
            buffer = self.buffers[shape]
            buffer.mul_(self.momentum).add_(grads)
            update = grads + self.momentum * buffer
            is_tall = shape[0] > shape[1]
            update = orthogonal(update.mT.contiguous()).mT if is_tall else orthogonal(update)
            scale = 0.2 * max(shape) ** 0.5
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - lr * decay).add_(u.reshape(p.shape), alpha=-lr * scale)


def cosine(done: float, step: int, *, warmup: int = 50, floor: float = 0.01) -> float:
    """Share of the peak learning rate at `done` in [0, 1] of the samples."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Run:
    """One resumable training. The schedule counts samples, never time, since other load changes the speed."""

    def __init__(
        self,
        module: nn.Module,
        *,
        samples: int,
        batch: int,
        lr: float,
        checkpoint: Path,
        uses_muon: bool = True,
        by_adam: tuple[str, ...] = ("embedding", "conv_out"),
    ) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.module, self.samples, self.batch, self.lr, self.checkpoint = module, samples, batch, lr, checkpoint
        matrices = [p for n, p in named if uses_muon and p.ndim >= 2 and not any(word in n for word in by_adam)]
        chosen = {id(p) for p in matrices}
        self.params = [p for _, p in named]
        rest = [p for p in self.params if id(p) not in chosen]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = [p.detach().clone() for p in self.params]
        self.seen = self.step = 0
        self.busy_s = 0.0
        if checkpoint.exists():
            self._resume()

    def go(self, gradients: Callable[[], float], *, report_every: int = 100, keep_s: float = 120) -> None:
        """Train to the end, saving every `keep_s` seconds; a second call after a kill goes on where it stopped.

        `gradients()` puts the mean gradient of one batch into the parameters and gives its loss.
        """
        recent: list[float] = []
        started = saved = time.monotonic()
        while self.seen < self.samples:
            share = cosine(self.seen / self.samples, self.step)
            value = gradients()
            nn.utils.clip_grad_norm_(self.params, 1.0)
            self.adam.param_groups[0]["lr"] = self.lr * share
            self.adam.step()
            self.muon.step(self.lr * share)
            self.step += 1
            self.seen += self.batch
            self._follow()
            recent.append(value)
            now = time.monotonic()
            if self.step % report_every == 0:
                line = f"step {self.step} samples {self.seen} loss {sum(recent) / len(recent):.5f}"
                print(f"{self.busy_s + now - started:6.0f}s {line}", flush=True)
                recent.clear()
            if now - saved > keep_s:
                self._save(self.busy_s + now - started)
                saved = now
        self.busy_s += time.monotonic() - started
        self._save(self.busy_s)

    @torch.no_grad()
    def _follow(self) -> None:
        torch._foreach_lerp_(self.average, list[Tensor](self.params), 1 - min(0.998, self.step / (self.step + 10)))

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the module."""
        for p, mean in zip(self.params, self.average, strict=True):
            p.copy_(mean)

    def _state(self, busy_s: float) -> dict[str, Any]:
        return {
            "params": [p.detach() for p in self.params],
            "average": self.average,
            "adam": self.adam.state_dict(),
            "muon": self.muon.buffers,
            "counts": (self.seen, self.step, busy_s),
        }

    def _save(self, busy_s: float) -> None:
        partial = self.checkpoint.with_suffix(".part")
        torch.save(self._state(busy_s), partial)
        partial.replace(self.checkpoint)

    @torch.no_grad()
    def _resume(self) -> None:
        state = torch.load(self.checkpoint)
        for p, kept in zip(self.params, state["params"], strict=True):
            p.copy_(kept)
        self.average = [mean.detach() for mean in state["average"]]
        self.adam.load_state_dict(state["adam"])
        self.muon.buffers = state["muon"]
        self.seen, self.step, self.busy_s = state["counts"]


def alone(run: Run, loss: Callable[[int], Tensor]) -> Callable[[], float]:
    """Gradients of one batch, computed in this process."""

    def gradients() -> float:
        for p in run.params:
            p.grad = None
        value = loss(run.batch)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    return gradients


class Pair:
    """Two processes of one thread each that share a batch: who is free takes the next part of it.

    On a busy machine this waits once a step for a core that others hold; threads of one process would wait in
    every operation. To be made before the first backward pass: the second process is forked.
    """

    def __init__(self, run: Run, loss: Callable[[int], Tensor], *, part: int, reseed: Callable[[int], None]) -> None:
        self.run, self.loss, self.part, self.parts = run, loss, part, run.batch // part
        for p in run.params:
            p.data.share_memory_()  # type: ignore[no-untyped-call]
        size = sum(p.numel() for p in run.params)
        self.shared = torch.zeros(size + 1).share_memory_()  # type: ignore[no-untyped-call]
        context = multiprocessing.get_context("fork")
        self.start, self.done = context.Semaphore(0), context.Semaphore(0)
        self.left = context.Value("i", 0)
        self.parent = os.getpid()
        helper = context.Process(target=self._help, args=(reseed,), daemon=True)
        helper.start()

    def __call__(self) -> float:
        """Gradients of one batch in the parameters of this process; gives the loss."""
        self.left.value = self.parts
        self.start.release()
        mine = self._work()
        self.done.acquire()
        both = (mine + self.shared) / self.parts
        at = 0
        for p in self.run.params:
            p.grad = both[at : at + p.numel()].view_as(p)
            at += p.numel()
        return float(both[-1])

    def _work(self) -> Tensor:
        """Sum of gradients, and of losses at its end, over the parts taken."""
        for p in self.run.params:
            p.grad = None
        total = 0.0
        while True:
            with self.left.get_lock():
                if self.left.value <= 0:
                    break
                self.left.value -= 1
            value = self.loss(self.part)
            value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
        flat = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self.run.params]
        return torch.cat([*flat, torch.tensor([total])])

    def _help(self, reseed: Callable[[int], None]) -> None:
        reseed(self.run.seen + 1)
        while True:
            while not self.start.acquire(timeout=5):
                if os.getppid() != self.parent:
                    os._exit(0)
            self.shared.copy_(self._work())
            self.done.release()
