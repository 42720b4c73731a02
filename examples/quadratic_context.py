"""Other dynamics: decodes that cost by the square of the context, and a policy that is trained on them.

``LLMSCHED_UNCOMPILED=1 python examples/quadratic_context.py``: the engine then runs as the Python that it is written
in, so a subclass of one of its classes changes what happens. Two classes say the law, to the engine and to everybody
else; environments, rules, metrics and training are as ever. What is worth keeping goes into
``llmsched_env/engine/costs.py``, where `make engine` compiles it: some hundred times as fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from llmsched_env import Scenario
from llmsched_env.baselines import make_policy
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine.costs import Costs
from llmsched_env.evaluation import evaluate


@dataclass(frozen=True)
class QuadraticContext(CostModel):
    """A decode takes longer by ``context_squared_ns`` times the square of the tokens of context in sum.

    Attributes:
        context_squared_ns: 1 adds 25 ms to a decode where 5,000 tokens are held.
    """

    context_squared_ns: int = 0

    @property
    def is_affine(self) -> bool:
        """No: what is decoded with whom matters."""
        return False

    def decode_ns(self, active: int, context_tokens: int = 0) -> int:
        """Duration of a decode with ``active`` clients that hold ``context_tokens`` in sum."""
        return super().decode_ns(active, context_tokens) + self.context_squared_ns * context_tokens**2

    def engine_costs(self, mixed: MixedCost | None) -> Costs:
        """The same for the engine."""
        return QuadraticCosts(self, mixed)


class QuadraticCosts(Costs):
    """The law inside the engine, which asks for the duration of each decode."""

    def __init__(self, model: CostModel, mixed: MixedCost | None = None) -> None:
        Costs.__init__(self, model, mixed)
        self.reads_context = True

    def decode_ns(self, active: int, context: int) -> int:
        """A decode of ``active`` clients that hold ``context`` tokens."""
        return self.model.decode_ns(active, context)


COST = QuadraticContext("quadratic", 23_240_000, 155_700, 17_870_000, 275_300, context_squared_ns=1)


def scenario(clients: int = 20) -> Scenario:
    """A small case of GSM8K lengths, its decodes dear where many tokens are held."""
    return Scenario(cost=COST, queue="shared", order="fcfs", num_clients=clients, num_requests=4 * clients)


def main(argv: Sequence[str] | None = None) -> None:
    """Train PPO for a while, and play it beside rules on test cases."""
    from stable_baselines3 import PPO

    from llmsched_env.agents.sb3_policy import SB3Policy
    from llmsched_env.agents.vec_env import SB3VecEnv

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    where = scenario(options.clients)
    copies = SB3VecEnv(8, where.replace(skip_forced=True))
    model = PPO("MlpPolicy", copies, n_steps=128, batch_size=256, seed=options.seed, device="cpu")
    print(f"training on {options.timesteps:,} decisions ...", flush=True)
    model.learn(options.timesteps, progress_bar=False)
    test = where.replace(split="test")
    for policy in (
        SB3Policy(model, "ppo", deterministic=False),
        make_policy("prefill_first"),
        make_policy("threshold"),
    ):
        print(f"{policy.name:>15}: makespan {evaluate(policy, test, options.cases).estimate('makespan_s').mean:.2f} s")


if __name__ == "__main__":
    main()
