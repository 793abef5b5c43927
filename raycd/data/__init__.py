"""From raw files to images and triplets."""
