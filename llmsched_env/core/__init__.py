"""Numbers only: the memory of an episode, the one transition, features, rewards, and loops over them."""
