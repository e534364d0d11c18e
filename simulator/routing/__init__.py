"""Which experts each token takes: recorded traces, synthetic laws, and the traffic they make."""
