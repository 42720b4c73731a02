"""Models of stable-baselines3 and sb3-contrib in the safe form: ``python -m llmsched_env.agents.export``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Origin, Trained
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.libraries import LIBRARIES
from llmsched_env.agents.network import Layer, Network, dense
from llmsched_env.agents.sb3_origin import check_spaces, normaliser, other_origin, trained_in
from llmsched_env.agents.sb3_policy import load_model
from llmsched_env.agents.scores import MASKED, SCORERS
from llmsched_env.config import Scenario
from llmsched_env.engine.features import TABLES, features_of
from llmsched_env.errors import ConfigError, FileFormatError, LLMSchedError
from llmsched_env.flags import path_option

__all__ = ["export"]

COMMAND = "python -m llmsched_env.agents.export"


ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu"}


def export(model: Any) -> Network:
    """The network that a model takes its most likely action by (of a value function, its best), in plain numbers.

    Args:
        model: of PPO, A2C, TRPO, MaskablePPO, DQN, QR-DQN (whose quantiles are averaged) or ARS, with "MlpPolicy" or
            "LinearPolicy", trained on an environment of this project.

    Raises:
        ConfigError: another architecture, other observations, or observations that were normalised.
    """
    kind = type(model.policy).__name__
    what = f"the model ({type(model).__name__} with {kind})"
    known = (*SCORERS, "ResidualPolicy")
    if kind not in known:
        raise ConfigError(f"{what} cannot be exported: its policy has to be one of {', '.join(known)}.")
    check_spaces(model, what)
    tables = {(len(table),): table for table in TABLES}
    shape = tuple(model.observation_space.shape)
    extractor = model.policy.features_extractor_class.__name__
    if shape not in tables or extractor != "FlattenExtractor":
        raise ConfigError(
            f"{what} cannot be exported: it reads observations of shape {shape} through {extractor}, and has to read "
            f"this version's, of shape {' or '.join(map(str, tables))}, through FlattenExtractor."
        )
    if normaliser(model, what) is not None:
        raise ConfigError(
            f"{what} cannot be exported: its observations are normalised (VecNormalize), and the file has no place for "
            "the statistics. Train with VecNormalize(..., norm_obs=False), or judge it in Python: SB3Policy(model)."
        )
    if kind == "ResidualPolicy":
        network: Network = model.policy.network()
        return network
    modules = [*SCORERS[kind](model.policy)]
    names = [type(module).__name__ for module in modules]
    between = {*names[1::2]}
    if len(names) % 2 == 0 or {*names[::2]} != {"Linear"} or len(between) > 1 or not between <= ACTIVATIONS.keys():
        raise ConfigError(
            f"{what} cannot be exported: its layers are {', '.join(names)}; they have to be Linear, with only "
            f"{' or only '.join(ACTIVATIONS)} between them."
        )
    layers = [_layer(module) for module in modules[::2]]
    actions = int(model.action_space.n)
    # Rows of the last layer are actions within quantiles; of most algorithms there is one.
    weight, bias = layers[-1]
    layers[-1] = weight.reshape(-1, actions, weight.shape[1]).mean(axis=0), bias.reshape(-1, actions).mean(axis=0)
    return Network(
        tuple(feature.name for feature in tables[shape]),
        tuple(layers),
        actions=actions,
        activation=ACTIVATIONS[between.pop()] if between else "tanh",
        masked=kind in MASKED,
    )


def _layer(module: Any) -> Layer:
    weight = module.weight.detach().cpu().numpy()
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().cpu().numpy()
    return dense(weight, bias)


def _trained_in(model: Path, name: str | None) -> Scenario:
    """Where a model was trained: what its run says, if it lies in one, else the environment of that name.

    Raises:
        ConfigError: neither, or they contradict each other.
        FileFormatError: the run's ``config.json`` is damaged.
        UnknownNameError: no such environment.
    """
    for folder in model.resolve().parents[:3]:
        if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
            try:
                training = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
                scenario = make_scenario(training["scenario"], **training["arguments"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                text = f"damaged ({error}): copy the model elsewhere."
                raise FileFormatError(folder / "config.json", text) from error
            if name not in (None, training["scenario"]):
                raise ConfigError(
                    f"--scenario {name}: the run in {folder} was on {training['scenario']}. Leave it out."
                )
            return scenario
    if name is None:
        raise ConfigError(f"{model} lies in no run of train.py: say with --scenario where it was trained.")
    return make_scenario(name)


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Write a trained model as an agent that loads without a learning library; 2 for unusable arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=command,
        description=f"{main.__doc__} A model's zip can run code when it is opened: give only one that you trust. What "
        "is written runs none. One that read normalised observations (VecNormalize) is refused.",
    )
    add = parser.add_argument
    add("model", type=path_option, metavar="ZIP", help="the saved model; opening it can run code")
    add("--algo", required=True, metavar="NAME", help=f"what trained it: {', '.join(LIBRARIES)}")
    add(
        "--scenario",
        metavar="ID",
        help="id of the environment that it was trained on, if it is not in its run's folder",
    )
    add("--out", required=True, type=path_option, metavar="FILE.npz", help="file to write")
    options = parser.parse_args(arguments)
    try:
        scenario = _trained_in(options.model, options.scenario)
        table, actions = features_of(scenario), scenario.num_actions
        model = load_model(options.model, options.algo)
        network, read = export(model), int(np.prod(model.observation_space.shape))
        if (read, network.actions) != (len(table), actions):
            raise ConfigError(
                f"the model reads {read} features and has {network.actions} actions, "
                f"{options.scenario or 'its run'} has {len(table)} and {actions}: name the environment that it was "
                "trained on."
            )
        if other := other_origin(trained_in(model), scenario):
            print(f"warning: the model began as the rule of another scenario ({other}).", file=sys.stderr)
        trained = Trained(network, Origin.of(scenario))
        AgentFile((trained,), f"{command} {shlex.join(arguments)}").write(options.out)
    except LLMSchedError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"Written to {options.out}: {network.actions} actions, {trained.origin}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
