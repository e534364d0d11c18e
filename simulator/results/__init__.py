"""Floor 4: figures, summary and trace export, from the files of a run alone."""
