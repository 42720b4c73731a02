"""Scenarios: one file for each group of arguments, with what they mean, what is checked, and what the engine takes."""

from llmsched_env.config.cases import LENGTHS, MAX_LOAD
from llmsched_env.config.checks import LARGEST, MAX_KV_TOKENS, MAX_SEED, checked_options, flag, number, real, whole
from llmsched_env.config.chunked import Mixed
from llmsched_env.config.episodes import REWARDS
from llmsched_env.config.kv_cache import (
    ADMISSIONS,
    CAP_LEVELS,
    KV_RULES,
    KV_VICTIMS,
    LLAMA_65B_BYTES_PER_TOKEN,
    KVCache,
)
from llmsched_env.config.machine import MAX_CLIENTS
from llmsched_env.config.mechanism import Mechanism, World
from llmsched_env.config.migration import STEALS, Migration
from llmsched_env.config.noise import Noise
from llmsched_env.config.queues import (
    ASSIGNMENTS,
    DEADLINE_ORDERS,
    JOINT,
    KEYED_ORDERS,
    ORDER_CODES,
    ORDERS,
    QUEUES,
    WAIT_PERCENTS,
    WINDOWS,
    order_code,
)
from llmsched_env.config.scenario import Scenario, read_arguments
from llmsched_env.config.slo import SLO

__all__ = [
    "ADMISSIONS",
    "ASSIGNMENTS",
    "CAP_LEVELS",
    "DEADLINE_ORDERS",
    "JOINT",
    "KEYED_ORDERS",
    "KV_RULES",
    "KV_VICTIMS",
    "LARGEST",
    "LENGTHS",
    "LLAMA_65B_BYTES_PER_TOKEN",
    "MAX_CLIENTS",
    "MAX_KV_TOKENS",
    "MAX_LOAD",
    "MAX_SEED",
    "ORDERS",
    "ORDER_CODES",
    "QUEUES",
    "REWARDS",
    "SLO",
    "STEALS",
    "WAIT_PERCENTS",
    "WINDOWS",
    "KVCache",
    "Mechanism",
    "Migration",
    "Mixed",
    "Noise",
    "Scenario",
    "World",
    "checked_options",
    "flag",
    "number",
    "order_code",
    "read_arguments",
    "real",
    "whole",
]
