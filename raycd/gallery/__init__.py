"""What is searched: ids, attributes and features, as indexed and as they change while they are
searched.
"""
