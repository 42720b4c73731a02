"""Learned policies: training them with stable-baselines3, and running them as policies of this project."""

from agents.files import load_agent

__all__ = ["load_agent"]
