"""Policies against slow, failing and recovering hosts, in simulated time: what meshlib decides is real, the rest is not."""
