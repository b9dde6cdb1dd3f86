"""Sizes, height and width, on which the resizing of both sides is compared."""

SIZES = [(height, width) for height in (8, 100, 256, 448, 700, 1024, 2000) for width in (30, 336, 512, 777, 1344)]
