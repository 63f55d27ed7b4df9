"""A differential tester: random routes and requests, decided by meshlib's route table and by a real Envoy.

    python -m differential --configurations 1000 --requests 10 --seed 7

The seed decides everything, so a run can be repeated. A disagreement is shrunk and printed as JSON.
"""
