"""Claims of papers put to the test by trainings: a plan (TOML), the runs it asks for, and the study they make.

plan -> schedule -> runs -> measures -> report
"""
