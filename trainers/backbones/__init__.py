"""Model families as trainers see them."""
