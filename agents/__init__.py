"""Learned policies: training them by evolution or with stable-baselines3, and running them as policies."""

from llmsched_env.agents.files import load_agent

__all__ = ["load_agent"]
