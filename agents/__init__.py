"""Learned policies: training them with stable-baselines3, and running them as policies of this project."""
