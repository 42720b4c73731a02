"""What holds for every test: the code under test is that of this checkout, and no test rests on how fast it is."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Before anybody loads NumPy or torch: arrays and networks this small gain nothing from two threads, and wait for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from llmsched_env.baselines import tuned
from llmsched_env.evaluation import drawing

ROOT = Path(__file__).parents[1]
USUAL_CASES = tuned.QUICK_CASES

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # as in make test-rllib, whose tests need none of it
    pass
else:
    from hypothesis.internal.conjecture import providers

    # A busy machine draws examples slowly, and what is compiled first takes a minute.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")
    # Hypothesis takes constants from the modules that are loaded, so that the examples of a law would depend on the
    # tests that this process has run before, and on every number in the code: what they exercise could not be counted.
    assert hasattr(providers, "_get_local_constants"), "Hypothesis has changed: see that examples still repeat"
    providers._get_local_constants = providers.Constants


def pytest_collection_modifyitems(items):
    """The longest tests begin first, so that no core waits for one of them at the end."""
    items.sort(key=lambda item: "test_it_runs_on_few_cases" not in item.nodeid)


def pytest_collection_finish():
    """What is loaded by now stays: the garbage collector need not look through all of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def this_checkout():
    """Processes that tests start import it, whatever else is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_tuning():
    """Rules that have to be tuned are tuned on few cases: tests do not ask how good they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "QUICK_CASES", 2)
        yield


@pytest.fixture(autouse=True, scope="session")
def small_pictures():
    """Of fewer pixels: their contents are looked at before they are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "DPI", 50)
        yield


@pytest.fixture
def usual_tuning(monkeypatch):
    """They are tuned on as many cases as for users: for tests that do ask."""
    monkeypatch.setattr(tuned, "QUICK_CASES", USUAL_CASES)
    tuned._tuned_value.cache_clear()
    yield
    tuned._tuned_value.cache_clear()


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved: what a picture shows, where its file only shows that there is one."""
    pytest.importorskip("matplotlib")
    kept, save = [], drawing.save

    def keep(figure, path):
        kept.append(figure)
        return save(figure, path)

    for module in [*sys.modules.values()]:
        if getattr(module, "save", None) is save:
            monkeypatch.setattr(module, "save", keep)
    return kept
