"""A second model beside the first: in the shadow of its answers, or for a share of the users."""
