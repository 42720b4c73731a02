"""Settings of the algorithms: what ships is right; what is wrong is said with file, key, value, limit, remedy."""

from __future__ import annotations

import inspect
import re

import pytest

from llmsched_env.agents.algorithms import ALGORITHMS, learner_class
from llmsched_env.agents.hyperparameters import COMMON, SHIPPED, read_settings, resolved
from llmsched_env.agents.libraries import LIBRARIES, algorithm
from llmsched_env.agents.sb3_learner import FOR_RULES, OURS
from llmsched_env.agents.training import Training
from llmsched_env.errors import ConfigError, FileFormatError, LLMSchedError, PathError

DEFAULTS = {algo: read_settings(SHIPPED / f"{algo}.yaml") for algo in ALGORITHMS}


def test_every_algorithm_has_its_file_and_every_file_its_algorithm():
    assert {path.stem for path in SHIPPED.iterdir()} == {*ALGORITHMS, "ppo_plain"}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_ships_is_valid_and_complete(algo):
    checks = learner_class(algo).checks
    assert DEFAULTS[algo].keys() >= {"timesteps", "evaluate_every"}
    assert DEFAULTS[algo].keys() <= {*COMMON, *checks}
    assert resolved(algo, checks, {}) == DEFAULTS[algo]


@pytest.mark.parametrize("algo", LIBRARIES)
def test_settings_of_a_library_are_arguments_of_its_class(algo):
    known = inspect.signature(algorithm(algo)).parameters
    assert [name for name in DEFAULTS[algo] if name not in OURS and name not in known] == []
    assert {*OURS} - {*FOR_RULES} <= DEFAULTS[algo].keys()
    assert not {*FOR_RULES} & DEFAULTS[algo].keys() or {*FOR_RULES} <= DEFAULTS[algo].keys()


@pytest.mark.parametrize("file", [algo for algo in LIBRARIES if algo != "ppo"] + ["ppo_plain"])
def test_a_file_marks_what_is_not_the_librarys_default(file):
    """Of ppo docs/learning.md says how they were chosen; of the others nothing is to be said but this."""
    algo = file.removesuffix("_plain")
    text, values = (SHIPPED / f"{file}.yaml").read_text(encoding="utf-8"), read_settings(SHIPPED / f"{file}.yaml")
    assert re.match(rf"# Settings of {algo}.*, not tuned; no result is claimed\.", text)
    known = inspect.signature(algorithm(algo)).parameters
    theirs = {*known} - {*OURS}
    others = {name for name, value in values.items() if name in theirs and value != known[name].default}
    marked = set(re.findall(r"^(\w+): .*# ours", text, re.MULTILINE))
    assert others, "nothing differs: nothing was tested"
    assert marked - {"net_arch", "activation"} == others


def test_a_plain_network_has_settings_of_its_own(tmp_path):
    plain, own = read_settings(SHIPPED / "ppo_plain.yaml"), DEFAULTS["ppo"]
    assert plain.keys() == own.keys()
    assert resolved("ppo", learner_class("ppo").checks, {}, file="ppo_plain") == plain

    def found(scenario="LLMSched/ServingOrder-v0", algo="ppo", **settings):
        return Training(algo, scenario, out=tmp_path, settings=settings).settings

    assert found("LLMSched/GSM8K-v0") == found("LLMSched/Serving-v0") == own
    for several in ("ServingOrder", "KVMemory", "Mixed"):
        assert found(f"LLMSched/{several}-v0") == plain
    assert found("LLMSched/GSM8K-v0", policy="mlp") == {**plain, "policy": "mlp"}
    assert found(learning_rate=0.01) == {**plain, "learning_rate": 0.01}
    assert found(algo="maskable_ppo") == DEFAULTS["maskable_ppo"]
    again = found()
    assert found(**again) == again, "a resumed run has the settings that it was begun with"
    with pytest.raises(ConfigError, match=r"gamma = 2.0 is out of range.*default, 0\.\d+"):
        found(gamma=2.0)


def test_every_check_of_the_libraries_is_used():
    checks = learner_class("ppo").checks
    assert set(checks) == {name for algo in LIBRARIES for name in DEFAULTS[algo]} - set(COMMON)


def settings(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return path


def test_own_settings_stand_in_for_some_of_the_shipped_ones(tmp_path):
    own = read_settings(settings(tmp_path, "learning_rate: 4e-4\ngamma: 1\nnet_arch: [8]\nnormalize_advantage: no\n"))
    found = resolved("ppo", learner_class("ppo").checks, own)
    changed = {name: value for name, value in found.items() if value != DEFAULTS["ppo"][name]}
    assert changed == {"learning_rate": 0.0004, "gamma": 1.0, "net_arch": [8], "normalize_advantage": False}
    assert read_settings(settings(tmp_path, "# nothing but words\n")) == {}


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (
            "learning_rat: 0.1",
            LLMSchedError,
            r"unknown ppo setting in .*own.yaml: 'learning_rat'\. Did you mean",
        ),
        ("buffer_size: 10", LLMSchedError, r"unknown ppo setting in .*own.yaml: 'buffer_size'.* Known: activation, "),
        (
            "gamma: 1.5",
            ConfigError,
            r"own.yaml: setting gamma = 1.5 is out of range: it lies in \[0, 1\]\. .* default, 0.98",
        ),
        ("gamma: .nan", ConfigError, r"own.yaml: setting gamma = nan is out of range"),
        ("gamma: high", ConfigError, r"own.yaml: setting gamma = 'high' is not a number"),
        ("gamma: true", ConfigError, r"own.yaml: setting gamma = True is not a number"),
        ("n_steps: 1:30", ConfigError, r"own.yaml: setting n_steps = '1:30' is not a whole number"),
        ("n_steps: 2.5", ConfigError, r"own.yaml: setting n_steps = 2.5 is not a whole number"),
        ("n_steps: 0", ConfigError, r"own.yaml: setting n_steps = 0 is out of range: it lies in \[1, "),
        ("timesteps: -1", ConfigError, r"own.yaml: setting timesteps = -1 is out of range: it lies in \[1, "),
        ("net_arch: 64", ConfigError, r"own.yaml: setting net_arch = 64 is not a list of .* write \[64, 64\]"),
        ("net_arch: [64, 0]", ConfigError, r"own.yaml: setting net_arch\[1\] = 0 is out of range"),
        ("normalize_advantage: 1", ConfigError, r"own.yaml: setting normalize_advantage = 1 is neither true nor false"),
        ("activation: tanhh", ConfigError, r"own.yaml: unknown activation 'tanhh'\. Did you mean 'tanh'"),
        ("activation:", ConfigError, r"own.yaml: unknown activation None"),
    ],
)
def test_values_that_cannot_be(tmp_path, text, kind, words):
    path = settings(tmp_path, text)
    with pytest.raises(kind, match=words):
        resolved("ppo", learner_class("ppo").checks, read_settings(path), str(path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-7", -7),
        ("1_000_000", 1_000_000),
        ("3e-4", 0.0003),
        ("10_000.5", 10_000.5),
        (".5", 0.5),
        ("-.inf", -float("inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0x10", "0x10"),
        ("0b11", "0b11"),
        ("1__0", "1__0"),
        ("1_", "1_"),
    ],
)
def test_numbers_are_decimal(tmp_path, text, value):
    (found,) = read_settings(settings(tmp_path, f"x: {text}\n")).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gamma: [1", r"own.yaml, line 1: not YAML \(.*write one 'name: value' a line"),
        ("n_steps: 8\ngamma: 0.9\nn_steps: 9\n", r"own.yaml, line 3, column 'n_steps': given twice"),
        ("n_steps: 8\n<<: {gamma: 0.9}\n", r"own.yaml, line 2, column '<<': merges another mapping: write its"),
        ("n_steps: !!int 0x10\n", r"own.yaml: not YAML \(invalid literal"),
        ("- 1\n- 2\n", r"own.yaml: not a mapping of names to values"),
        ("1: 2\n", r"own.yaml: not a mapping of names to values"),
        ("gamma: !!python/object:os.system {}\n", "not YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path, text, words):
    with pytest.raises(FileFormatError, match=words):
        read_settings(settings(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PathError, match=r"cannot read .*absent.yaml: No such file.*\. Give a YAML file"):
        read_settings(tmp_path / "absent.yaml")
    with pytest.raises(PathError, match="cannot read"):
        read_settings(tmp_path)
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="not a text file in UTF-8"):
        read_settings(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("algo", "own", "words"),
    [
        ("ppo", {"batch_size": 100}, r"batch_size = 100 does not divide a rollout of n_steps x copies = 32 x 2 = 64"),
        ("ars", {"n_top": 9}, "n_top = 9 is more than n_delta = 2: lower it, or raise n_delta"),
        ("dqn", {"target_update_interval": 1}, "copies = 2 is more than target_update_interval = 1"),
        ("dqn", {"buffer_size": 1}, "copies = 2 is more than buffer_size = 1"),
    ],
)
def test_settings_that_contradict_each_other(small, algo, own, words):
    from llmsched_env.agents.training import train

    with pytest.raises(ConfigError, match=words):
        train(small(algo, settings=own))
