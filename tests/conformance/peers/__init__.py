"""The peers of the conformance tests: real processes and servers, and what every test wants to know of an answer."""
