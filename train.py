"""Train an agent on an environment of this project and compare it with the rules on validation cases.

PPO with its default settings and a short run may well not beat the tuned rules, and its most likely action can be much
worse than its sampled one: see docs/agents.md for what was measured. The comparison at the end shows both.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from agents.training import Training, train
from baselines.registry import entry
from baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.errors import LLMSchedError

RIVALS = ("lagrangian", "lagrangian_tuned", "tuned_threshold", "max_wait_tuned", "interleave_tuned")


@dataclass(frozen=True)
class Args:
    """The command line: one option a field, with what its attribute says here as its help.

    Attributes:
        algo: algorithm: ppo, a2c, dqn or maskable_ppo
        scenario: environment id
        timesteps: decisions to train for
        seed: of network, exploration and order of cases
        out: folder for model.zip and run.json
        copies: environments stepped side by side
        cases: validation cases to compare on, each of them once an agent and rival; a serving case has 10,000 choices
        clients: clients J
        requests: requests a case, drawn with replacement; 0: the workload's own number
        queue: queues: client or shared; nothing: the scenario's own
    """

    algo: str = "ppo"
    scenario: str = "LLMSched/GSM8K-v0"
    timesteps: int = 100_000
    seed: int = 0
    out: Path = Path("runs/ppo")
    copies: int = 8
    cases: int = 20
    clients: int = 200
    requests: int = 0
    queue: str = ""

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Args:
        """From the words of a command line."""
        # argparse and not a library: ten flat options need no dependency.
        parser = argparse.ArgumentParser(
            prog="python train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        kinds, texts = get_type_hints(cls), dict(re.findall(r"^ +(\w+): (.+)$", cls.__doc__ or "", re.MULTILINE))
        for option in fields(cls):
            text = f"{texts.get(option.name, '')} (default: {option.default})"
            parser.add_argument(f"--{option.name}", type=kinds[option.name], default=option.default, help=text)
        return cls(**vars(parser.parse_args(argv)))

    def training(self) -> Training:
        """What the options ask for.

        Raises:
            LLMSchedError: what they ask for cannot be done.
        """
        arguments: dict[str, Any] = {"num_clients": self.clients}
        if self.queue:
            arguments["queue"] = self.queue
        if self.requests:
            arguments["num_requests"] = self.requests
        return Training(
            self.algo, self.scenario, self.timesteps, self.seed, self.out, self.copies, self.cases, arguments
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Train and compare; 2 for what cannot be done, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = Args.parse(words)
    try:
        training = args.training()
        record = train(
            training,
            [entry(name, training.validation) for name in _rivals(training.validation)],
            command=f"python train.py {shlex.join(words)}".strip(),
        )
    except LLMSchedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no half-written file is left behind.", file=sys.stderr)
        return 130
    _show(record["validation"])
    print(f"Written to {args.out}: model.zip, run.json")
    return 0


def _rivals(scenario: Scenario) -> list[str]:
    """Rules to compare with, the best tuned one among them; where orders are actions, under the best order."""
    more = ("min_batch_tuned", "deadline_tuned") if scenario.serving else ()
    return list(dict.fromkeys((*RIVALS, *more, best_tuned(scenario))))


def _show(validation: dict[str, Any]) -> None:
    metric = validation["objective"]
    print(f"\n{validation['cases']} validation cases, with 95 % intervals. {metric}:")
    for name, row in validation["policies"].items():
        print(f"{name:>28}  {_interval(row[metric])}")
    print(f"{metric} of the agent minus that of a rival, case by case:")
    for agent, differences in validation["agent_minus_rival"].items():
        for rival, difference in differences.items():
            print(f"{agent + ' - ' + rival:>40}  {_interval(difference)}")


def _interval(estimate: dict[str, Any]) -> str:
    low, high = estimate["ci95"]
    text = f"{estimate['mean']:8.3f}"
    return text if low is None else f"{text} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    raise SystemExit(main())
