"""The demo data: garments drawn with triplets in words, the same from the same seed."""
