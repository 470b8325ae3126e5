"""Compare ways of adapting a model on the same work: train, draw, judge, count."""
