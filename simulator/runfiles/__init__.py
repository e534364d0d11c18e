"""Floor 0: the files of a run - names, schemas, writers, readers."""
