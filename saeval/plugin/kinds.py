"""The kinds of plugins."""

KINDS = ("source", "coder", "sampler", "explainer", "scorer", "llm", "tracker")
