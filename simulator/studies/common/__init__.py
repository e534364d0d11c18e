"""What the studies of published systems share: claims and verdicts, runs, reports, figures."""
