"""PPO of TorchRL on the native vector environment, compared on validation cases with the rule that it begins as.

    python examples/torchrl_ppo.py --id LLMSched/GSM8K-v0 --seed 0

The policy begins as the rule `lagrangian_lookahead` with multiplier 0.2: the logit of a prefill is sharpness * (the
rule's comparison + network). The environment's action mask reaches it through the infos.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from llmsched_env import make_scenario
from llmsched_env.baselines.lagrangian import lagrangian_lookahead
from llmsched_env.engine.features import features_of
from llmsched_env.evaluation import evaluate, mean_estimate

MULTIPLIER = 0.2
"""Of the rule that it begins as."""


def make_env(environment: str, num_envs: int, seed: int, **arguments: Any) -> EnvBase:
    """The native copies under TorchRL.

    `GymEnv(environment, num_envs=...)` is an `AsyncVectorEnv`. That one spends a step on each reset, and TorchRL trains
    on it. The native copies reset in the step that ends an episode. TorchRL then sees the last observation.
    """
    envs = gymnasium.make_vec(environment, num_envs=num_envs, split="train", **arguments)
    wrapped = GymWrapper(envs, categorical_action_encoding=True)
    wrapped.set_seed(seed)
    return wrapped


class Scale(nn.Module):
    """Observations less their mean, in units of their spread."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def forward(self, observation: Tensor) -> Tensor:
        """(..., size)."""
        return (observation - self.mean) / self.spread


class Residual(nn.Module):
    """Logits of a decode and a prefill: the rule, and a correction that begins at zero."""

    def __init__(
        self, names: Sequence[str], scale: Scale, multiplier: float = MULTIPLIER, sharpness: float = 10.0
    ) -> None:
        super().__init__()
        self.charge, self.threshold, self.sharpness = names.index("charge_ahead"), np.log(multiplier), sharpness
        self.network = nn.Sequential(scale, nn.Linear(len(names), 32), nn.Tanh(), nn.Linear(32, 1))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, observation: Tensor) -> Tensor:
        """(..., 2)."""
        share = observation[..., self.charge, None].clamp(1e-9, 1 - 1e-7)  # C_d / (C_d + C_p)
        score = torch.log(share / (1 - share)) - self.threshold
        logit = self.sharpness * (score + self.network(observation))
        logit = torch.where(score >= 1.0, torch.full_like(logit, 30.0), logit)  # nobody waits for ever
        return torch.cat([torch.zeros_like(logit), logit], -1)


def make_actor(residual: Residual, action_spec: Any) -> ProbabilisticActor:
    """The policy, from observation and mask to action."""

    def masked(logits: Tensor, mask: Tensor) -> MaskedCategorical:
        return MaskedCategorical(logits=logits, mask=mask.bool(), neg_inf=-1e9)

    return ProbabilisticActor(
        TensorDictModule(residual, ["observation"], ["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        spec=action_spec,
        distribution_class=masked,
        return_log_prob=True,
    )


def judge(actor: ProbabilisticActor, environment: str, cases: int) -> np.ndarray:
    """(cases,) gap to the bound of the most likely actions on the first validation cases."""
    env = gymnasium.make(environment, split="validation", skip_forced=True)
    gaps = []
    for case in range(cases):
        observation, info = env.reset(options={"case": case})
        over = False
        while not over:
            seen = TensorDict(
                {"observation": torch.tensor(observation), "action_mask": torch.tensor(info["action_mask"])}
            )
            with torch.no_grad(), set_exploration_type(ExplorationType.MODE):
                action = int(actor(seen)["action"])
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        gaps.append(info["gap_to_bound"])
    return np.array(gaps)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="LLMSched/GSM8K-v0", help="a batch with two actions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=300_000, help="decisions (default: 300,000)")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=256, help="decisions of each copy in a rollout (default: 256)")
    parser.add_argument("--minibatch", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--gamma", type=float, default=0.98)
    parser.add_argument("--cases", type=int, default=20, help="validation cases (default: 20)")
    args = parser.parse_args(argv)
    scenario = make_scenario(args.id, split="validation")
    if scenario.num_actions != 2 or scenario.serving:
        parser.error("this example is for a batch with two actions: GSM8K-v0, -Smooth-v0, -Blind-v0 or -Predicted-v0.")

    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # a network this small gains nothing from two
    names = [feature.name for feature in features_of(scenario)]
    env = make_env(args.id, args.num_envs, args.seed, reward="differential", skip_forced=True)
    scale = Scale(len(names))
    actor = make_actor(Residual(names, scale), env.action_spec_unbatched)
    critic = ValueOperator(
        nn.Sequential(scale, nn.Linear(len(names), 64), nn.Tanh(), nn.Linear(64, 1)), ["observation"]
    )
    with torch.no_grad():
        seen = env.rollout(args.num_steps, actor, break_when_any_done=False)["observation"].flatten(0, 1)
    scale.mean.copy_(seen.mean(0))
    scale.spread.copy_(seen.std(0).clamp(min=0.02))
    advantage = GAE(gamma=args.gamma, lmbda=0.95, value_network=critic)
    loss_module = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.0, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=args.learning_rate, eps=1e-5)
    rollout = args.num_envs * args.num_steps
    frames = max(1, args.frames // rollout) * rollout
    collector = Collector(
        env, actor, frames_per_batch=rollout, total_frames=frames, auto_register_policy_transforms=False
    )
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(rollout), sampler=SamplerWithoutReplacement(), batch_size=min(args.minibatch, rollout)
    )

    for number, data in enumerate(collector, 1):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - (number - 1) * rollout / frames)
        with torch.no_grad():
            advantage(data)
        buffer.empty()
        buffer.extend(data.reshape(-1))
        for _ in range(args.epochs * rollout // min(args.minibatch, rollout)):
            losses = loss_module(buffer.sample())
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
            optimizer.step()
        done = data["next", "done"].sum()
        print(
            f"{number * rollout:>9} decisions  reward {data['next', 'reward'].mean():+.4f}  episodes {done}", flush=True
        )
    collector.shutdown()

    gaps = judge(actor, args.id, args.cases)
    rule = evaluate(lagrangian_lookahead(MULTIPLIER), scenario, args.cases).columns["gap_to_bound"]
    difference = mean_estimate(100 * (gaps - rule))
    print(f"gap to the bound, {args.cases} validation cases: {100 * gaps.mean():.3f} %, rule {100 * rule.mean():.3f} %")
    print(f"difference {difference.mean:+.3f} points [{difference.low:+.3f}, {difference.high:+.3f}]")


if __name__ == "__main__":
    main()
