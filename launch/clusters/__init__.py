"""Jobs that run without the terminal that sent them: on this machine or on a cluster."""
