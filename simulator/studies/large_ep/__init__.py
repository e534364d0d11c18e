"""Study `large-ep`: one expert per GPU and layer."""
