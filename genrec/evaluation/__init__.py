"""How good a model's rankings are: on held-out items, beside other models, as tables and plots."""
