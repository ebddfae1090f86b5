"""prompts in, answers out: the one generator of chat and prediction."""
