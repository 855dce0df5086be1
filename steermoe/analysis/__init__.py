"""What the scores and the trained steering show: comparison, report and pictures."""
