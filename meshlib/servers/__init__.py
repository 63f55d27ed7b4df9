"""What the server adapters share: who calls, whether they may, what the request hands on, and what is reported."""
