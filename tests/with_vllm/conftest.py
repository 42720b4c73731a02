"""A model's config without weights."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    import vllm_bare

    return vllm_bare.write_model(tmp_path_factory.mktemp("model"))
