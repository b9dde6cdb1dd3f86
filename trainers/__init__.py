"""Trainers: few-step students by distribution matching and rewards; see `python -m trainers.run --help`."""
