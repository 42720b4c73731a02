"""The examples for other libraries, on small sizes. ``make test-ecosystem`` installs the libraries and runs these."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = "{} is not installed: make test-ecosystem"


def run(example, *words):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def in_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


class TestMinari:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("minari", reason=MISSING.format("minari"))
        pytest.importorskip("h5py", reason=MISSING.format("h5py"))

    def test_data_sets_are_written_checked_and_repeated(self, tmp_path):
        words = ["--policies", "lagrangian,prefill_first", "--episodes", 2, "--split", "validation"]
        done = run("minari_dataset.py", *words, "--out", tmp_path / "a")
        assert done.returncode == 0, done.stderr
        rows = re.findall(r"^(\w+) +2 +(\d+) +(-?\d+\.\d+) +(\d+\.\d+)$", done.stdout, re.M)
        assert [row[0] for row in rows] == ["lagrangian", "prefill_first"]
        (_, _, better, shorter), (_, _, worse, longer) = rows
        assert float(better) > float(worse)
        assert float(shorter) < float(longer)
        assert (tmp_path / "a" / "llmsched" / "GSM8K" / "lagrangian-v0" / "data" / "main_data.hdf5").is_file()

        assert run("minari_dataset.py", *words, "--out", tmp_path / "b").stdout == done.stdout
        again = run("minari_dataset.py", *words, "--out", tmp_path / "a")
        assert again.returncode == 2
        assert "exists already: choose another --out" in again.stderr

    def test_what_is_read_is_an_episode_of_the_environment(self, tmp_path):
        assert run("minari_dataset.py", "--policies", "lagrangian", "--episodes", 1, "--out", tmp_path).returncode == 0
        done = in_python(f"""
import os, warnings
os.environ["MINARI_DATASETS_PATH"] = {str(tmp_path)!r}
warnings.simplefilter("ignore")
import minari, numpy as np
import llmsched_env
from llmsched_env.baselines import make_policy
from llmsched_env.evaluation import evaluate
data = minari.load_dataset("llmsched/GSM8K/lagrangian-v0")
(episode,) = data.iterate_episodes()
env = data.recover_environment()
observation, info = env.reset(options={{"case": 0}})
for step, action in enumerate(episode.actions):
    np.testing.assert_array_equal(observation, episode.observations[step])
    np.testing.assert_array_equal(info["action_mask"], episode.infos["action_mask"][step])
    observation, reward, terminated, truncated, info = env.step(action)
    assert reward == episode.rewards[step]
    assert (terminated, truncated) == (episode.terminations[step], episode.truncations[step])
assert terminated and step > 100
expected = evaluate(make_policy("lagrangian"), env.unwrapped.scenario, 1).columns["makespan_s"][0]
assert episode.infos["makespan_s"][-1] == info["makespan_s"] == expected
print("same")
""")
        assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


class TestTorchRL:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("tensordict", reason=MISSING.format("torchrl"))
        pytest.importorskip("torch", reason=MISSING.format("torchrl"))

    QUICK = ("--frames", 2048, "--num-envs", 4, "--num-steps", 256, "--minibatch", 256, "--epochs", 2, "--cases", 2)

    def test_it_learns_and_repeats(self):
        done = run("torchrl_ppo.py", *self.QUICK)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^ +\d+ decisions  reward [+-]\d\.\d+  episodes \d+$", done.stdout, re.M)) == 2
        assert re.search(r"^difference [+-]\d\.\d+ points \[", done.stdout, re.M)
        assert run("torchrl_ppo.py", *self.QUICK).stdout == done.stdout

    def test_what_it_is_not_for(self):
        refused = run("torchrl_ppo.py", "--id", "LLMSched/Serving-v0")
        assert refused.returncode == 2
        assert "a batch with two actions" in refused.stderr

    def test_rollouts_are_the_episodes_of_the_copies_and_masks_hold(self):
        """Also where decisions are forced: then the mask leaves one action."""
        done = in_python("""
import gymnasium, numpy as np, torch
from examples.torchrl_ppo import Residual, Scale, make_actor, make_env
from llmsched_env import make_scenario
from llmsched_env.engine.features import features_of
identity, small = "LLMSched/GSM8K-v0", dict(num_clients=10, num_requests=20, assignment="lpt")
env = make_env(identity, 3, 7, reward="differential", **small)
names = [feature.name for feature in features_of(make_scenario(identity))]
torch.manual_seed(0)
with torch.no_grad():
    actor = make_actor(Residual(names, Scale(len(names))), env.action_spec_unbatched)
    found = env.rollout(3000, actor, break_when_any_done=False)
assert (found["next", "invalid_actions"] == 0).all(), "the mask did not reach the policy"
assert (found["action_mask"].sum(-1) == 1).any(), "nothing was forced"
done = found["next", "done"].squeeze(-1)
assert (done.sum(1) >= 2).all(), f"hardly an episode ended: {done.sum(1)}"
goes_on = ~done[:, :-1]
same = (found["observation"][:, 1:] == found["next", "observation"][:, :-1]).all(-1)
assert same[goes_on].all() and not same[~goes_on].any()
for copy in range(3):
    env = gymnasium.make(identity, split="train", reward="differential", **small)
    begin = 0
    for end in done[copy].nonzero().flatten().tolist():
        observation, _ = env.reset(options={"case": int(found["case"][copy, begin])})
        for step in range(begin, end + 1):
            np.testing.assert_array_equal(observation, found["observation"][copy, step].numpy())
            observation, reward, over, _, _ = env.step(int(found["action"][copy, step]))
            assert np.float32(reward) == found["next", "reward"][copy, step].item()
            np.testing.assert_array_equal(observation, found["next", "observation"][copy, step].numpy())
            assert over == (step == end)
        begin = end + 1
print("same")
""")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("same\n")

    def test_it_begins_as_the_rule(self):
        done = in_python("""
import numpy as np
from examples.torchrl_ppo import MULTIPLIER, Residual, Scale, judge, make_actor, make_env
from llmsched_env import make_scenario
from llmsched_env.baselines.lagrangian import lagrangian_lookahead
from llmsched_env.engine.features import features_of
from llmsched_env.evaluation import evaluate
identity = "LLMSched/GSM8K-v0"
scenario = make_scenario(identity, split="validation")
names = [feature.name for feature in features_of(scenario)]
actor = make_actor(Residual(names, Scale(len(names))), make_env(identity, 2, 0).action_spec_unbatched)
rule = evaluate(lagrangian_lookahead(MULTIPLIER), scenario, 2)
np.testing.assert_array_equal(judge(actor, identity, 2), rule.columns["gap_to_bound"])
""")
        assert done.returncode == 0, done.stderr
