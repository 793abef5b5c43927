"""Demo data: drawn garments with triplets in words, the same for the same seed."""
