"""The simulated world of `demo` and of the tests: stateful vendors on loopback."""
