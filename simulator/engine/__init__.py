"""The simpy engine: network, streams, expert memory and the step that ties them together."""
