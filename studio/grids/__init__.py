"""Grids of pictures: what they are to show, how they are filled, kept and given away."""
