"""Training: the flex stage, and the rules that train gates."""
