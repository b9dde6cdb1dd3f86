"""Answerers of questions about pictures: an interface, and models behind it."""
