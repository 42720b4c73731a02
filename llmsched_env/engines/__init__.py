"""Real engines: what they did is recorded, priced and played again, and policies of this package drive them."""
