"""A simulation of endpoints, and of the governors that decide how many requests to keep in flight there."""
