"""The training loop of this folder: whatever network on whatever batches, with a running average,
and checkpoints that a later run goes on from.

The batch of a step depends on the step only, so that a run that was interrupted sees the same ones.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glyphs.base import CHECKPOINT_SECONDS, learning_rate_at
from glyphs.images import load_checkpoint, log, save_checkpoint

LOG_STEPS = 100

Batch = tuple[Tensor, ...]


class Run:
    """Everything that changes while training, and its checkpoint.

    `build` gives the network, each time with the same start; `config` has num_steps, batch_size,
    learning_rate, warmup_steps, weight_decay, max_grad_norm and ema_decay.
    """

    def __init__(self, build: Callable[[], nn.Module], config: Any, checkpoint: Path) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.model = build().train()
        self.average = build().requires_grad_(False).eval()
        self.trained = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        if checkpoint.exists():
            state = load_checkpoint(checkpoint)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
            log(f"resumed at step {self.step}")

    @property
    def finished(self) -> bool:
        return self.step >= self.config.num_steps

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(state | {"step": self.step, "seconds": self.seconds}, self.checkpoint)

    def learn(self, loss: Tensor) -> float:
        """One step of the optimizer and of the average; the loss as a number."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.config)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():  # quicker at the start: at most (1 + n) / (10 + n)
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            kept = list(self.average.parameters())
            torch._foreach_lerp_(kept, self.trained, 1 - decay)
        return loss.item()


def train(
    run: Run, draw: Callable[[int], Batch], loss_of: Callable[..., Tensor], stop_after: float
) -> None:
    """Trains to the end, or for `stop_after` seconds; the batches are drawn a step ahead."""
    start = saved = time.monotonic()
    before, losses, marked = run.seconds, [], (run.step, start)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(draw, run.step)
        while not run.finished and time.monotonic() - start < stop_after:
            batch = coming.result()
            coming = ahead.submit(draw, run.step + 1)
            losses.append(run.learn(loss_of(*batch)))
            now = time.monotonic()
            run.seconds = before + now - start
            if run.step % LOG_STEPS == 0:
                speed = (run.step - marked[0]) * run.config.batch_size / (now - marked[1])
                left = (run.config.num_steps - run.step) * run.config.batch_size / speed / 60
                mean = sum(losses) / len(losses)
                log(f"step {run.step} loss {mean:.4f} {speed:.0f} images/s, {left:.0f} min left")
                losses.clear()
                marked = (run.step, now)
            if now - saved > CHECKPOINT_SECONDS:
                run.save()
                saved = now
    run.save()


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every training here has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("settings", type=Path, help="a settings file (.toml)")
    options.add_argument("--seconds", type=float, default=math.inf, help="stop early")
    options.add_argument("--eager", action="store_true", help="without torch.compile")
    options.add_argument("--export", type=Path, help="write the averaged weights so far and stop")
    return options
