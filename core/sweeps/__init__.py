"""Many runs from one command: variants of a configuration, poor ones ended early. No torch."""
