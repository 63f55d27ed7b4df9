"""Where documents come from: each source yields `Document`s, every field with its place, and findings about what it cannot read."""
