"""The gallery that is searched: images as they were indexed, and how they change meanwhile."""
