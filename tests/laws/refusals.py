"""What is excepted from a law, by name and with the reason: methods, hosts, methods on hosts.

Each reason is what the error says, as a regular expression; every entry is tested to be refused.
"""

NO_FLOW = "unknown for a class without a host"
NOT_LINEAR = "not linear|no weights to take up"
OWN_NORM = f"shared by all blocks|share one|modulate|no weights to take up|{NO_FLOW}"

# (method, host) -> why the method cannot work there at all
REFUSED: dict[tuple[str, str], str] = {
    ("vpt", "flux"): "rotary embedding has a fixed length",
    ("vpt", "flux2"): "rotary embedding has a fixed length",
    ("vpt", "sana"): "lays the tokens out as rows and columns",
    ("bitfit", "flux2"): "has no biases",
    **{
        (method, host): NO_FLOW
        for method in ("adaptformer", "vpt", "adapter")
        for host in ("auraflow", "lumina2")
    },
}

# What does not fold into ordinary weights: not an equal function of the same form
NOT_FOLDED: dict[str | tuple[str, str], str] = {
    "adaptformer": NOT_LINEAR,
    "adapter": NOT_LINEAR,
    "vpt": "no weights do what added tokens do",
    **{("difffit", host): OWN_NORM for host in ("pixart", "sana", "flux2", "auraflow", "lumina2")},
}

# What has neither strength nor sum
NO_STRENGTH: dict[str | tuple[str, str], str] = {
    "full": "is a weight, a copy",
    "vpt": "is added tokens",
}

# What a batch cannot mix
NOT_MIXED: dict[str | tuple[str, str], str] = {
    "full": "a copy of weights, which all images of a batch",
    # because of its final layer; without that it is mixed (test_mixing.py)
    "vpt": "a copy of weights, which all images of a batch",
}

# What cannot be compiled into one graph, with or without a delta
NOT_COMPILED: dict[str | tuple[str, str], str] = {
    # its own forward pads by the number of each text's tokens, which it reads from the mask
    "lumina2": "data-dependent",
}

# What already differs from the base before it is trained
NOT_AT_THE_BASE: dict[str | tuple[str, str], str] = {"vpt": "its tokens start at N(0, 0.02)"}


def reason(table: dict, method: str, host: str) -> str | None:
    """Why this method is excepted on this host; None if it is not."""
    return table.get(method) or table.get(host) or table.get((method, host))
