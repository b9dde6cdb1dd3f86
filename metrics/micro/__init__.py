"""The micro world: coloured shapes, their exact detector, and small models that score them."""
