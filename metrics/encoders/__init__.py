"""Encoders of whole model families, each made from nothing but a folder of weights."""
