"""Offline data sets for Minari: episodes of policies of this package, written, read again and checked.

    python examples/minari_dataset.py --policies beam,lagrangian --episodes 20 --out runs/minari

Each policy gets a data set of its own: that of the planner is `llmsched/GSM8K/beam-v0`. Infos are recorded, too. They
hold the action mask and the running metrics of each step. Episode i is case i of the split.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

import llmsched_env
from llmsched_env.baselines import make_policy
from llmsched_env.evaluation import begin
from llmsched_env.policy import Policy


def played(policy: Policy, env: gymnasium.Env[Any, Any], case: int) -> EpisodeBuffer:
    """One episode. (`minari.DataCollector` records the same, but needs JAX.)"""
    options = {"case": case}
    observation, info = env.reset(seed=case, options=options)
    begin(policy, env, seed=case)
    observations, infos, steps = [observation], [info], []
    over = False
    while not over:
        action = policy.act(env.unwrapped.simulator.view)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        infos.append(info)
        steps.append((action, float(reward), terminated, truncated))
        over = terminated or truncated
    actions, *rest = (list(column) for column in zip(*steps, strict=True))
    stacked = {name: np.stack([np.asarray(info[name]) for info in infos]) for name in infos[0]}
    return EpisodeBuffer(case, case, options, observations, [np.int64(action) for action in actions], *rest, stacked)


def write(policy_name: str, args: argparse.Namespace) -> tuple[str, list[float]]:
    """Play the episodes and write them: the data set's id, and the returns."""
    env = gymnasium.make(args.id, split=args.split, reward=args.reward, skip_forced=True)
    policy = make_policy(policy_name)
    episodes = [played(policy, env, case) for case in range(args.episodes)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(code_permalink|author|author_email|eval_env)` is set to None")
        data = minari.create_dataset_from_buffers(
            dataset_id=name_of(policy_name, args.id),
            buffer=episodes,
            env=env,
            algorithm_name=policy_name,
            author=args.author,
            description=f"{policy_name} in {args.id}: cases 0 to {args.episodes - 1} of the {args.split} split.",
            requirements=[f"llmsched-env=={llmsched_env.__version__}"],
            data_format="hdf5",
        )
    env.close()
    return data.id, [sum(episode.rewards) for episode in episodes]


def name_of(policy_name: str, environment: str) -> str:
    """As Minari names data sets: namespace/environment/data set-version."""
    return f"llmsched/{environment.partition('/')[2].rpartition('-v')[0]}/{policy_name}-v0"


def check(dataset_id: str, returns: list[float]) -> str:
    """Read the data set again, compare it with what was played, and give a row of the table."""
    data = minari.load_dataset(dataset_id)
    episodes = list(data.iterate_episodes())
    if [sum(episode.rewards.tolist()) for episode in episodes] != returns:
        raise SystemExit(f"{dataset_id}: the returns read are not those of the episodes.")
    env = data.recover_environment()  # its arguments are in the data set
    env.reset(options={"case": 0})
    if sum(float(env.step(action)[1]) for action in episodes[0].actions) != returns[0]:
        raise SystemExit(f"{dataset_id}: the actions of case 0 do not give its return again.")
    env.close()
    makespan_s = np.mean([episode.infos["makespan_s"][-1] for episode in episodes])
    policy_name = data.storage.metadata["algorithm_name"]
    return f"{policy_name:<20}{data.total_episodes:>8}{data.total_steps:>9}{np.mean(returns):>13.5f}{makespan_s:>14.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write a data set for each policy, check it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="LLMSched/GSM8K-v0")
    parser.add_argument("--policies", default="beam", help="names, with commas between (default: beam)")
    parser.add_argument("--episodes", type=int, default=20, help="of each policy (default: 20)")
    parser.add_argument("--split", default="train", choices=("train", "validation", "test"))
    parser.add_argument("--reward", default="differential", help="of the environment (default: differential)")
    parser.add_argument("--author", help="for the metadata")
    parser.add_argument("--out", type=Path, default=Path("runs/minari"), help="folder (default: runs/minari)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(args.out.resolve())
    names = args.policies.split(",")
    for name in names:
        if (args.out / name_of(name, args.id)).exists():
            parser.error(f"{args.out / name_of(name, args.id)} exists already: choose another --out, or move it away.")
    print(f"{'policy':<20}{'episodes':>8}{'steps':>9}{'mean return':>13}{'makespan (s)':>14}")
    for name in names:
        print(check(*write(name, args)), flush=True)


if __name__ == "__main__":
    main()
