"""Pictures of what deltas learned: where their class or subject changes a prediction, what looks at
its word, and how much each edit does.
"""
