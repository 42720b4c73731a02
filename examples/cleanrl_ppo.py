"""PPO in one file, in the style of CleanRL: every line of the algorithm is here, in plain torch.

    python examples/cleanrl_ppo.py --id LLMSched/GSM8K-v0 --seed 0

It trains on 64 native copies (`gymnasium.make_vec`) with differential rewards, and begins as the Lagrangian rule with
the multiplier that is best on training cases: the logit of a prefill is sharpness * (the rule's comparison + network).
At the end the most likely actions are compared with the rule on validation cases. A million decisions take a minute or
two.
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np
import torch
from torch import nn

from llmsched_env import make_scenario
from llmsched_env.agents import rule_start
from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.network import Network, dense
from llmsched_env.cases import pool_size
from llmsched_env.engine.features import features_of
from llmsched_env.errors import LLMSchedError

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--id", default="LLMSched/GSM8K-v0", help="a batch with two actions")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--total-timesteps", type=int, default=1_000_000)
parser.add_argument("--learning-rate", type=float, default=5e-3)
parser.add_argument("--num-envs", type=int, default=64)
parser.add_argument("--num-steps", type=int, default=512, help="decisions of each copy in a rollout")
parser.add_argument("--minibatch-size", type=int, default=4096)
parser.add_argument("--update-epochs", type=int, default=6)
parser.add_argument("--gamma", type=float, default=0.98)
parser.add_argument("--gae-lambda", type=float, default=0.95)
parser.add_argument("--clip-coef", type=float, default=0.2)
parser.add_argument("--vf-coef", type=float, default=0.5)
parser.add_argument("--max-grad-norm", type=float, default=0.5)
parser.add_argument("--sharpness", type=float, default=10.0, help="logits per unit of the rule's score")
parser.add_argument("--cases", type=int, default=20, help="validation cases")
args = parser.parse_args()

# ---- bad arguments, before anything is made
batch_size = args.num_envs * args.num_steps
try:
    scenario = make_scenario(args.id, split="train")
except LLMSchedError as error:
    parser.error(f"--id: {error}")
most_cases = pool_size(scenario.replace(split="validation")) or 10**9
for name, least, most in (
    *((name, 1, 2**31) for name in ("num_envs", "num_steps", "total_timesteps", "update_epochs")),
    *((name, 0, 1) for name in ("gamma", "gae_lambda")),
    *((name, 1e-9, 1e9) for name in ("learning_rate", "clip_coef", "max_grad_norm", "sharpness")),
    ("seed", 0, 2**32 - 1),
    ("minibatch_size", 2, batch_size),
    ("vf_coef", 0, 1e9),
    ("cases", 1, most_cases),
):
    if not least <= getattr(args, name) <= most:
        flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
        parser.error(f"{flag} is out of range: it lies in [{least:g}, {most:g}].")
if batch_size % args.minibatch_size:
    parser.error(
        f"--minibatch-size {args.minibatch_size} does not divide a rollout of --num-envs x --num-steps = {batch_size} "
        "decisions: give one that does."
    )
if scenario.num_actions != 2 or scenario.serving:
    parser.error("this example is for a batch with two actions: GSM8K-v0, -Smooth-v0, -Blind-v0 or -Predicted-v0.")

torch.manual_seed(args.seed)
torch.set_num_threads(1)
rng = np.random.default_rng(args.seed)

envs = gymnasium.make_vec(
    f"llmsched_env:{args.id}", num_envs=args.num_envs, split="train", reward="differential", skip_forced=True
)
start = rule_start(scenario)  # the rule's numbers, and how far each feature spreads under it
names, (threshold, weight_ahead) = start["features"], start["base_values"]
table = [feature.name for feature in features_of(scenario)]
columns, before, ahead = [table.index(name) for name in names], table.index("charge"), table.index("charge_ahead")


class Agent(nn.Module):
    """A residual on the Lagrangian rule, and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(start["mean"], dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(start["spread"], dtype=torch.float32))
        self.inner, self.outer = nn.Linear(len(names), 16), nn.Linear(16, 1)
        self.skip = nn.Linear(len(names), 1, bias=False)
        self.critic = nn.Sequential(
            nn.Linear(len(names) + 1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )
        for zeros in (self.skip.weight, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zeros)  # the rule

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """ln(C_d / C_p) - ln lambda, from the features C_d / (C_d + C_p) without and with the coming decode."""
        odds = [share / (1 - share) for share in (x[:, i, None].clamp(1e-9, 1 - 1e-7) for i in (before, ahead))]
        return torch.log((1 - weight_ahead) * odds[0] + weight_ahead * odds[1]) - threshold

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,): the logit of a prefill, and the value."""
        seen, score = (x[:, columns] - self.mean) / self.spread, self.score(x)
        logit = args.sharpness * (score + self.outer(torch.tanh(self.inner(seen))) + self.skip(seen))
        logit = torch.where(score >= 1.0, torch.full_like(logit, 30.0), logit)  # nobody waits for ever
        return logit[:, 0], self.critic(torch.cat([seen, score.clamp(-3, 3)], 1))[:, 0]

    def network(self) -> Network:
        """The most likely actions as plain numbers, which decide inside the engine."""
        mean, spread = np.array(start["mean"]), np.array(start["spread"])
        inner, outer, skip = (
            layer.weight.detach().numpy().astype(float) for layer in (self.inner, self.outer, self.skip)
        )
        return Network(
            tuple(names),
            (
                dense(inner / spread, self.inner.bias.detach().numpy() - inner / spread @ mean),
                dense(outer, self.outer.bias.detach().numpy() - skip / spread @ mean),
            ),
            head="prefill",
            skip=skip / spread,
            base="lagrangian",
            base_values=(threshold, weight_ahead),
            base_limit=1.0,
        )


agent = Agent()
optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

validation = BatchEvaluation(scenario.replace(split="validation"), range(args.cases))
first, _ = validation.losses([agent.network()], validation.cases)
print(f"the rule, multiplier {np.exp(threshold):.3g}: gap {100 * first.mean():.3f} %")
nn.init.normal_(agent.outer.weight, std=0.01)  # else the hidden layer has no gradient
updates = max(1, args.total_timesteps // batch_size)
started = time.time()
observations, infos = envs.reset(seed=args.seed)
x = torch.tensor(observations)
for update in range(updates):
    optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - update / updates)

    # ---- rollout
    shape = (args.num_steps, args.num_envs)
    xs = torch.zeros((*shape, len(table)))
    actions, logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(5))
    for step in range(args.num_steps):
        with torch.no_grad():
            logit, value = agent(x)
        chance = torch.distributions.Bernoulli(logits=logit)
        action = chance.sample()
        xs[step], actions[step], logprobs[step], values[step] = x, action, chance.log_prob(action), value
        observations, reward, terminated, truncated, infos = envs.step(action.numpy().astype(np.int64))
        x, rewards[step] = torch.tensor(observations), torch.tensor(reward, dtype=torch.float32)
        dones[step] = torch.tensor(terminated | truncated, dtype=torch.float32)  # the next row is another episode's

    # ---- generalised advantage estimation
    with torch.no_grad():
        next_value = agent(x)[1]
    advantages, last = torch.zeros(shape), torch.zeros(args.num_envs)
    for step in reversed(range(args.num_steps)):
        goes_on = 1 - dones[step]
        delta = rewards[step] + args.gamma * next_value * goes_on - values[step]
        last = delta + args.gamma * args.gae_lambda * goes_on * last
        advantages[step], next_value = last, values[step]
    returns = advantages + values

    # ---- update
    flat = [part.reshape(batch_size, -1).squeeze(-1) for part in (xs, actions, logprobs, advantages, returns)]
    for _ in range(args.update_epochs):
        order = rng.permutation(batch_size)
        for begin in range(0, batch_size, args.minibatch_size):
            chosen = torch.from_numpy(order[begin : begin + args.minibatch_size])
            b_x, b_action, b_logprob, b_advantage, b_return = (part[chosen] for part in flat)
            logit, value = agent(b_x)
            ratio = (torch.distributions.Bernoulli(logits=logit).log_prob(b_action) - b_logprob).exp()
            b_advantage = (b_advantage - b_advantage.mean()) / (b_advantage.std() + 1e-8)
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.minimum(ratio * b_advantage, clipped * b_advantage).mean()
            loss = policy_loss + args.vf_coef * (b_return - value).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()

    gap, _ = validation.losses([agent.network()], validation.cases)
    decisions = (update + 1) * batch_size
    print(f"{decisions:>9} decisions  gap {100 * gap.mean():.3f} %  {decisions / (time.time() - started):.0f} a second")

difference = 100 * (gap - first)[0]
half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
print(f"gap less that of the rule, {args.cases} validation cases: {difference.mean():+.3f} ± {half:.3f} points")
