"""The front door: verbs, config composition, local supervision, quickstart."""
