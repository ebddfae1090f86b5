"""checkpoints that are whole or not there: staged, hashed, published, verified, resumed."""
