"""Floor 0: what the user wrote - units, YAML with positions, schema, ``--set``, find by name."""
