"""A folder of deltas of one team: which may be served, and which a new base orphans."""
