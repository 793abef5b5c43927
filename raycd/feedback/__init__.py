"""Feedback: what people did with the answers of a search, and the triplets that it makes.

An answer is a `LoggedSearch`, an action on one of its results an `Event`. Whether a result was
clicked says two things at once: that somebody saw it at its position, and that it was right. The
first is the position's **propensity**; `explore` measures it on a randomised slice, `examination`
estimates it without one. `triplets` divides by it.

Shapes: K positions, G groups of results of like relevance.
"""
