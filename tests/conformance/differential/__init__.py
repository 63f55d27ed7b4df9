"""A differential tester: random routes and requests, decided by meshlib's route table and by a real Envoy.

    python -m differential --layer each --cases 10000 --seed 7

Layers: `matching`, `rewriting` (with header mutations), `clusters`, `answers` (of the mesh itself), `all` of it mixed, and
`rejection`: which of randomly broken configurations are taken. The seed decides everything, so a run can be repeated. A
disagreement is shrunk and printed as JSON.
"""
