"""Trainings in processes of their own that kill themselves, begun by a server that has imported the libraries once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading

from llmsched_env.agents.runs import Run
from llmsched_env.agents.training import train
from llmsched_env.agents.vec_env import SB3VecEnv
from llmsched_env.cli import train as command

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["cmaes", "llmsched_env.cli.train", "matplotlib.pyplot", "sb3_contrib", "torch._dynamo", "torch.utils.tensorboard"]
)


def exit_code_of(function, *arguments):
    """Of a process that calls the function; negative where a signal ended it. What it prints, pytest shows."""
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def train_and_die_at_any_moment(checkpoints, words):
    """The command, which dies within moments of so many checkpoints.

    By itself: from outside it might be done before a busy machine looks again.
    """
    save, left = Run.save, checkpoints
    delay_s = random.Random(checkpoints).uniform(0.0, 0.03)

    def save_and_die_soon(*arguments):
        nonlocal left
        saved = save(*arguments)
        left -= 1
        if left == 0:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return saved

    Run.save = save_and_die_soon
    sys.exit(command.main(words))


def train_and_die_in_a_rollout(training, steps):
    """A training, which dies when the copies have made so many steps."""
    step, left = SB3VecEnv.step_wait, steps

    def step_or_die(copies):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(copies)

    SB3VecEnv.step_wait = step_or_die
    train(training)
