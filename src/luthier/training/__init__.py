"""The run: training, evaluating, predicting, and what they leave behind."""
