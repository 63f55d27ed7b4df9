"""Decides how a call copes with trouble: what counts as success, what is repeated and when, how much work may be in
flight, who is taken out, and when a call must be over."""
