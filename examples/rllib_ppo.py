"""Train PPO with RLlib's new API stack and compare it with the Lagrangian rule on validation cases.

Runs on two CPU cores. ``make test-rllib`` makes a virtual environment for it, ``.venv-rllib``, because RLlib pins an
older Gymnasium than the rest of this project uses.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID, Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from llmsched_env import ENVIRONMENTS, Scenario, make_scenario
from llmsched_env.baselines.registry import make_policy
from llmsched_env.evaluation import evaluate, mean_estimate
from llmsched_env.policy import EpisodeContext, View, features

METRICS = ("makespan_s", "gap_to_bound")
WINDOW = 20
"""Episodes that a printed mean is over."""


class RLlibPolicy:
    """Draws its action from the module's distribution, or takes the most likely one.

    The module is asked without RLlib's connectors: its observations must be the environment's own, not normalised.
    """

    kind, clairvoyant = "agent", False

    def __init__(self, module: RLModule, name: str = "rllib_ppo", *, sampled: bool = True) -> None:
        self.name = name
        self._module = module
        self._sampled = sampled

    @classmethod
    def load(cls, checkpoint: Path, **options: Any) -> RLlibPolicy:
        """Read a checkpoint that `save` wrote. It can run code when read: open only your own."""
        parts = (COMPONENT_LEARNER_GROUP, COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID)
        return cls(RLModule.from_checkpoint(checkpoint.resolve().joinpath(*parts)), **options)

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode."""
        self._random = np.random.default_rng(start.seed)

    def act(self, view: View) -> int:
        """The action for this view's features."""
        batch = {Columns.OBS: torch.from_numpy(features(view))[None]}
        with torch.inference_mode():
            chances = self._module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS][0].softmax(-1)
        return int(self._random.random() < chances[1]) if self._sampled else int(chances.argmax())


def log_metrics(*, episode: Any, metrics_logger: Any, **_: Any) -> None:
    """At the end of an episode the environment's info has what it achieved."""
    for name in METRICS:
        metrics_logger.log_value(name, episode.get_infos(-1)[name], window=WINDOW)


def configured(environment: str, arguments: dict[str, Any], seed: int, batch: int = 4096) -> PPOConfig:
    """PPO on the training cases, with decisions only where there is a choice."""
    return (
        PPOConfig()
        # The module before the colon is imported wherever RLlib makes the environment.
        .environment(f"llmsched_env:{environment}", env_config={**arguments, "split": "train", "skip_forced": True})
        # No runners: this process samples. RLlib seeds copy i of runner r with seed + r + i, so runners share cases.
        # Two copies only: then a batch has whole episodes of both ids, not the same stretch of many.
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .learners(num_learners=0)
        # An episode is some hundred decisions: a discount further from 1 would not see its end.
        .training(
            gamma=0.999, lambda_=0.95, lr=3e-4, train_batch_size=batch, minibatch_size=min(256, batch), num_epochs=10
        )
        .callbacks(on_episode_end=log_metrics)
        .reporting(metrics_num_episodes_for_smoothing=WINDOW)
        .debugging(seed=seed, log_level="ERROR")
    )


def train(algorithm: PPO, iterations: int) -> Iterator[dict[str, float]]:
    """Yield the decisions so far and the means over the last episodes, NaN before the first has ended."""
    for _ in range(iterations):
        found = algorithm.train()["env_runners"]
        means = {name: float(found.get(name, np.nan)) for name in ("episode_return_mean", *METRICS)}
        yield {"decisions": int(found["num_env_steps_sampled_lifetime"]), **means}


def compare(module: RLModule, scenario: Scenario, cases: int, seed: int) -> None:
    """Print the agent, sampled and most likely, beside the Lagrangian rule on the same cases."""
    rule = evaluate(make_policy("lagrangian"), scenario, cases)
    agents = (RLlibPolicy(module, "sampled"), RLlibPolicy(module, "most likely", sampled=False))
    for found in (rule, *(evaluate(agent, scenario, cases, seed=seed) for agent in agents)):
        means = "  ".join(f"{name} {found.estimate(name).mean:.5g}" for name in METRICS)
        slower = mean_estimate(found.columns["makespan_s"] - rule.columns["makespan_s"])
        print(f"{found.policy:>12}  {means}  slower by {slower.mean:+.2f} s [{slower.low:+.2f}, {slower.high:+.2f}]")


def save(algorithm: PPO, checkpoint: Path) -> None:
    """Write the checkpoint whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=checkpoint.parent) as folder:
        algorithm.save_to_path(Path(folder, "whole").resolve())
        Path(folder, "whole").rename(checkpoint)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, save, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=ENVIRONMENTS, default="LLMSched/GSM8K-v0")
    parser.add_argument("--iterations", type=int, default=10, help="of 4096 decisions (default: 10)")
    parser.add_argument("--clients", type=int, help="default: 200")
    parser.add_argument("--requests", type=int, help="requests a case (default: the workload's own number)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=20, help="validation cases to compare on (default: 20)")
    parser.add_argument("--out", type=Path, default=Path("runs/rllib"), help="folder (default: runs/rllib)")
    args = parser.parse_args(argv)
    checkpoint = args.out / "checkpoint"
    if checkpoint.exists():
        parser.error(f"{checkpoint} exists already: choose another --out, or move it away.")
    args.out.mkdir(parents=True, exist_ok=True)

    given = {"num_clients": args.clients, "num_requests": args.requests}
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if arguments:
        arguments["assignment"] = "lpt"  # the MIP's queues are shipped for the ids' own sizes; others take seconds
    validation = make_scenario(args.scenario, **{**arguments, "split": "validation"})

    torch.set_num_threads(1)  # a network this small gains nothing from two, and waits for them on a busy machine
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        algorithm = configured(args.scenario, arguments, args.seed).build_algo()
        for number, row in enumerate(train(algorithm, args.iterations), 1):
            print(f"{number:3d}  " + "  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
        save(algorithm, checkpoint)
        print(f"Written to {checkpoint}. {args.cases} validation cases, differences with 95 % intervals:")
        compare(algorithm.get_module(), validation, args.cases, args.seed)
        algorithm.stop()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
