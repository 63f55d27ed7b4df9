"""Shells that carry out calls: one per client library, all over the same `Call`."""
