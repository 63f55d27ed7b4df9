"""Configuration as frozen values, free of protobuf: what the decoders make and the decisions read.

A new configuration is a new value; nothing here is ever changed in place. Durations are seconds, ratios 0.0-1.0, and
an absent option is `None`, so that its default is stated once, where it is applied.
"""
