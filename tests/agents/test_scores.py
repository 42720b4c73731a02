"""What a network of the libraries is asked directly: to the last bit what the libraries say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import SCENARIOS, views
from stable_baselines3 import PPO
from test_export import MODELS, model_of

from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.scores import scores_of
from llmsched_env.policy import EpisodeContext, features

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


def asked(policy, scenario, seen):
    """The actions at these views, of one episode."""
    policy.reset(EpisodeContext(scenario, 100.0, seed=7))
    return [policy.act(view) for view in seen]


@pytest.mark.parametrize("name", MODELS)
def test_they_are_the_librarys(name):
    taken = set()
    for place in ("client", "serving", "orders"):
        scenario = SCENARIOS[place]
        model, observations, masks = model_of(name, scenario), np.stack([features(view) for view in views(place)]), {}
        if "maskable" in name:
            mask = np.random.default_rng(0).random((len(observations), scenario.num_actions)) < 0.5
            mask[:, 0] = True
            masks["action_masks"] = mask
        found = scores_of(model)(observations, **masks)
        actions, _ = model.predict(observations, deterministic=True, **masks)
        np.testing.assert_array_equal(found.argmax(axis=1), actions)
        taken |= {(place, action) for action in actions.tolist()}
        if hasattr(model.policy, "get_distribution"):
            distribution = model.policy.get_distribution(torch.from_numpy(observations), **masks).distribution
            np.testing.assert_array_equal(found, distribution.probs.detach().numpy())
    assert {action for place, action in taken if place != "orders"} == {0, 1}
    assert len([action for place, action in taken if place == "orders"]) > 1, "only one action was ever taken"


@pytest.mark.parametrize("deterministic", [True, False])
def test_models_of_other_classes_are_asked_as_the_library_asks_them(deterministic):
    class Own(PPO):
        asked = 0

        def predict(self, *arguments, **options):
            self.asked += 1
            return super().predict(*arguments, **options)

    scenario, seen = SCENARIOS["orders"], views("orders")[-100:]
    plain = model_of("ppo", scenario)
    own = Own("MlpPolicy", plain.get_env(), device="cpu")
    own.policy.load_state_dict(plain.policy.state_dict())
    assert scores_of(own) is None
    actions = asked(SB3Policy(own, deterministic=deterministic), scenario, seen)
    assert actions == asked(SB3Policy(plain, deterministic=deterministic), scenario, seen)
    assert len(set(actions)) > 1, "only one action was ever taken"
    assert own.asked == (100 if deterministic else 0)


def test_networks_with_other_layers_are_asked_as_the_library_asks_them():
    model = model_of("ppo", SCENARIOS["client"], activation_fn=torch.nn.Dropout)
    assert scores_of(model) is None
    taken = asked(SB3Policy(model), SCENARIOS["client"], views("client")[:50])
    assert taken == asked(SB3Policy(model), SCENARIOS["client"], views("client")[:50]), "nothing is dropped"


def test_a_broken_network_is_the_librarys_to_complain_of():
    model = model_of("ppo", SCENARIOS["client"])
    with torch.no_grad():
        model.policy.action_net.bias[0] = torch.nan
    with pytest.raises(ValueError, match="found invalid values"):
        asked(SB3Policy(model), SCENARIOS["client"], views("client")[:1])
